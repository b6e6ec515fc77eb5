"""LoRAs that depend on the timestep, as variants of PEFT's LoRA layers, and the clock that tells them the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..._sharing import guard_forward, unguard_forward
from ..errors import LoRAError
from ..updates import LayerUpdate
from .deltas import DeltaVariant


GAMMA, BETA = "lora_time_gamma", "lora_time_beta"
_ATTRIBUTE = "_flux_ext_clock"


def sinusoids(timestep: Tensor, size: int) -> Tensor:
    """What FLUX.1 makes of timesteps in [0, 1000] first: cosines, then sines; `(batch, size)`."""
    return get_timestep_embedding(timestep, size, flip_sin_to_cos=True, downscale_freq_shift=0)


class TimestepClock:
    """Takes the timesteps of every call of a transformer, for the LoRAs in it."""

    def __init__(self, transformer: nn.Module) -> None:
        self.timestep: Tensor | None = None
        self.embedding: Tensor | None = None
        self.configs: list[Any] = []
        # The time holds for one forward pass, so one thread at a time may run it.
        guard_forward(transformer)
        self.handles = [
            transformer.register_forward_pre_hook(self.before, with_kwargs=True),
            transformer.register_forward_hook(self.after, prepend=True, always_call=True),
        ]

    def before(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook of the transformer."""
        hidden_states = args[0] if args else kwargs["hidden_states"]
        timestep = args[3] if len(args) > 3 else kwargs["timestep"]
        # As the transformer itself does, which takes timesteps in [0, 1].
        self.timestep = timestep.to(hidden_states.dtype) * 1000
        self.embedding = None
        if not torch.compiler.is_compiling() and not self.is_used(transformer):
            drop_unused_clock(transformer)

    def after(self, transformer: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the transformer."""
        self.timestep = self.embedding = None

    def read(self, size: int) -> Tensor:
        """The embedding of the timesteps of the current call, `(batch, size)` in float32."""
        if self.timestep is None:
            raise RuntimeError("A timestep LoRA runs only inside a call of its transformer, which has the timestep.")
        if self.embedding is None or self.embedding.shape[1] != size:
            self.embedding = sinusoids(self.timestep, size)
        return self.embedding

    def is_used(self, transformer: nn.Module) -> bool:
        """Whether the transformer still has one of the LoRAs that the clock is for."""
        present = getattr(transformer, "peft_config", {}).values()
        return any(config is other for config in present for other in self.configs)


class TimestepDelta(nn.Module):
    """
    `up @ (gamma(t) * (down @ x) + beta(t))`, with `gamma` and `beta` affine in the sinusoids of the timestep.

    Args:
        update (`LayerUpdate`): Factors, weights and biases of a layer.
        dtype (`torch.dtype`): Of its parameters.
    """

    clock: TimestepClock

    def __init__(self, update: LayerUpdate, dtype: torch.dtype) -> None:
        super().__init__()
        parts = {name: part.to(dtype) for name, part in update.parts.items()}
        self.down, self.up = _linear(parts["down"]), _linear(parts["up"])
        self.modulation = _linear(
            torch.cat([parts[f"{GAMMA}.weight"], parts[f"{BETA}.weight"]]),
            torch.cat([parts[f"{GAMMA}.bias"], parts[f"{BETA}.bias"]]),
        )

    @property
    def weight(self) -> Tensor:
        """What PEFT looks at for device and dtype."""
        return self.up.weight

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        time = self.clock.read(self.modulation.in_features).to(x)
        modulation = self.modulation(time).unflatten(0, (-1, *[1] * (x.ndim - 2)))
        gamma, beta = modulation.chunk(2, dim=-1)
        return self.up(torch.addcmul(beta, self.down(x), gamma))


class TimestepVariant(DeltaVariant):
    """Has PEFT's LoRA layer add a [`TimestepDelta`]."""

    @staticmethod
    def _refuse(*args: Any, **kwargs: Any) -> Any:
        raise LoRAError(
            "A timestep LoRA is another update at every timestep: it cannot be fused into the weights. "
            "`bake_timestep_lora` gives the LoRA of one timestep, which can."
        )

    merge_safe = merge_unsafe = unmerge = _refuse


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def check_timed(updates: Iterable[tuple[str, LayerUpdate]]) -> None:
    """Raises a [`LoRAError`] unless every layer is a complete one of a timestep LoRA."""
    expected = sorted([f"{name}.{part}" for name in (GAMMA, BETA) for part in ("weight", "bias")])
    for name, update in updates:
        timed = {part: tuple(tensor.shape) for part, tensor in update.parts.items() if part.startswith("lora_time_")}
        if not timed:
            raise LoRAError(f"`{name}` does not depend on the timestep: this is no timestep LoRA. Use `load_lora`.")
        rank = update.rank
        sizes = {shape[1:] for part, shape in timed.items() if part.endswith(".weight")}
        ranks = {shape[:1] for shape in timed.values()}
        if sorted(timed) != expected or update.kind != "lora" or ranks != {(rank,)} or len(sizes) != 1:
            raise LoRAError(
                f"`{name}` is no layer of a timestep LoRA: besides a LoRA of rank {rank} it has {timed}; expected "
                f"{expected}, the weights of shape (rank, size) and the biases of shape (rank,)."
            )
        if len(other := [part for part in update.parts if part not in (*timed, "down", "up")]):
            raise LoRAError(f"`{name}` has {other}, which no timestep LoRA has.")


def connect_clock(transformer: nn.Module, adapter_name: str) -> None:
    """Connects the updates of an adapter with the clock of their transformer."""
    clock = getattr(transformer, _ATTRIBUTE, None) or TimestepClock(transformer)
    setattr(transformer, _ATTRIBUTE, clock)
    clock.configs.append(transformer.peft_config[adapter_name])  # type: ignore[index]
    for layer in transformer.modules():
        if isinstance(layer, BaseTunerLayer) and adapter_name in layer.lora_B:
            layer.lora_B[adapter_name].clock = clock


def drop_unused_clock(model: nn.Module) -> None:
    """Takes the clock off a model that has no timestep LoRA any more."""
    clock: TimestepClock | None = getattr(model, _ATTRIBUTE, None)
    if clock is not None and not clock.is_used(model):
        for handle in clock.handles:
            handle.remove()
        delattr(model, _ATTRIBUTE)
        unguard_forward(model)


def baked(update: LayerUpdate, timestep: float, strength: float) -> dict[str, Tensor]:
    """A layer of a timestep LoRA at one timestep, as `down`, `up` and `bias` of an ordinary one in float32."""
    parts = {name: part.float() for name, part in update.parts.items()}
    time = sinusoids(torch.tensor([timestep]), parts[f"{GAMMA}.weight"].shape[1])
    gamma, beta = (F.linear(time, parts[f"{name}.weight"], parts[f"{name}.bias"])[0] for name in (GAMMA, BETA))
    up = strength * parts["up"]
    return {"down": gamma[:, None] * parts["down"], "up": up, "bias": up @ beta}
