"""How weights of 16 bits keep what a step of the optimizer adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch

from ..draws import Draws


# Data types in which an ordinary step of a trained model is lost.
LOW = (torch.bfloat16, torch.float16)


def round_stochastically(values: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Round to bfloat16, up or down with the probabilities that make the result right on average.

    Args:
        values (`torch.Tensor`): float32.
        generator (`torch.Generator`, *optional*): Source of randomness, on the device of `values`.

    Returns:
        `torch.Tensor` of the same shape, bfloat16.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    # A bfloat16 number is the upper half of a float32 number: the carry of the lower half rounds up.
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


class Rule(Protocol):
    """What stands between a weight of 16 bits and the float32 weight that the optimizer steps."""

    dtypes: ClassVar[tuple[torch.dtype, ...]]

    def kept(self) -> dict[torch.nn.Parameter, torch.Tensor]:
        """Return what is kept between steps, by parameter, for checkpoints."""
        ...

    def raised(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the float32 weight."""
        ...

    def lower(self, parameter: torch.nn.Parameter, value: torch.Tensor, update: int) -> None:
        """Write a float32 weight back."""
        ...


class Stochastic:
    """Rounds up or down at random, so that small steps count on average; keeps nothing.

    Args:
        names (`Mapping[torch.nn.Parameter, str]`): The parameters' names.
        seed (`int`): The randomness depends on it, the name and the update's number alone.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16,)

    def __init__(self, names: Mapping[torch.nn.Parameter, str], seed: int) -> None:
        self.names, self.draws = names, Draws(seed)

    def kept(self) -> dict[torch.nn.Parameter, torch.Tensor]:
        """Return what is kept between steps: nothing."""
        return {}

    def raised(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the weight in float32."""
        return parameter.detach().float()

    def lower(self, parameter: torch.nn.Parameter, value: torch.Tensor, update: int) -> None:
        """Round stochastically."""
        seed = self.draws.generator(f"rounding of {self.names[parameter]}", update).initial_seed()
        generator = torch.Generator(device=value.device).manual_seed(seed)
        parameter.copy_(round_stochastically(value, generator))


class Kahan:
    """Keeps what rounding took away in a second number of 16 bits, and adds it before the next step.

    Args:
        names (`Mapping[torch.nn.Parameter, str]`): The parameters.
        seed (`int`): Not needed.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = LOW

    def __init__(self, names: Mapping[torch.nn.Parameter, str], seed: int) -> None:
        self.rests = {parameter: torch.zeros_like(parameter.detach()) for parameter in names if parameter.dtype in LOW}

    def kept(self) -> dict[torch.nn.Parameter, torch.Tensor]:
        """Return what rounding took away."""
        return self.rests

    def raised(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the weight and what rounding took away."""
        return parameter.detach().float() + self.rests[parameter].float()

    def lower(self, parameter: torch.nn.Parameter, value: torch.Tensor, update: int) -> None:
        """Round to the nearest number and keep the rest."""
        parameter.copy_(value)
        self.rests[parameter].copy_(value - parameter.float())


class Masters:
    """Keeps every weight in float32, of which the parameters are rounded copies.

    Args:
        names (`Mapping[torch.nn.Parameter, str]`): The parameters.
        seed (`int`): Not needed.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = LOW

    def __init__(self, names: Mapping[torch.nn.Parameter, str], seed: int) -> None:
        self.weights = {parameter: parameter.detach().float() for parameter in names if parameter.dtype in LOW}

    def kept(self) -> dict[torch.nn.Parameter, torch.Tensor]:
        """Return the float32 weights."""
        return self.weights

    def raised(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the float32 weight itself, which the optimizer changes in place."""
        return self.weights[parameter]

    def lower(self, parameter: torch.nn.Parameter, value: torch.Tensor, update: int) -> None:
        """Round to the nearest number."""
        if value.data_ptr() != self.weights[parameter].data_ptr():
            self.weights[parameter].copy_(value)
        parameter.copy_(value)


RULES: dict[str, type[Stochastic] | type[Kahan] | type[Masters]] = {
    "stochastic": Stochastic,
    "kahan": Kahan,
    "masters": Masters,
}
