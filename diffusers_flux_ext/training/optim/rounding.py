"""Any optimizer on weights of 16 bits: it steps float32 weights, which are then rounded with care."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...checkpoints.messages import list_keys
from ..choices import choose
from .rules import LOW, RULES, Rule
from .stepping import step_alone, steps_by_parameter


_KEPT = "rounding"
_UPDATES = "rounding_updates"


class RoundedOptimizer(torch.optim.Optimizer):
    """An optimizer of float32 weights for parameters of 16 bits.

    A weight of 0.02 in bfloat16 has neighbours at a distance of 1.2e-4, so steps of 1e-5 are rounded away. Here the
    optimizer steps float32 weights, with float32 gradients and states, and the result is rounded by one of three
    rules:

    | rule | more memory per weight | the weights are |
    |---|---|---|
    | `"stochastic"` | none | right on average |
    | `"kahan"` | 2 bytes | right to about 16 bits |
    | `"masters"` | 4 bytes | those of float32 |

    Float32 weights exist for one parameter at a time if the optimizer allows that (see [`steps_by_parameter`]),
    otherwise for all of them during a step. Parameters that are float32 already are stepped as they are.

    Args:
        groups (`Sequence[Mapping[str, Any]]`): Groups of parameters, as any optimizer takes them.
        make (`Callable`): Makes the optimizer from groups.
        rule (`str`): `"stochastic"` (bfloat16 only), `"kahan"` or `"masters"`.
        names (`Mapping[torch.nn.Parameter, str]`): The parameters' names.
        seed (`int`, defaults to 0): Of stochastic rounding, which depends on it, on names and on the update's number.

    Raises:
        ValueError: if the rule is not known, or does not work with the data type of a parameter.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        rule: str,
        names: Mapping[torch.nn.Parameter, str],
        seed: int = 0,
    ) -> None:
        chosen = choose(RULES, rule, "rule of rounding")
        check_dtypes({name: parameter for parameter, name in names.items()}, rule)
        self.rule: Rule = chosen(names, seed)
        self._working = {parameter: _stand_in(parameter) for parameter in names}
        inner_groups = [{**group, "params": [self._working[each] for each in group["params"]]} for group in groups]
        self.inner = make(inner_groups)
        super().__init__([{_UPDATES: 0, **group} for group in groups], dict(self.inner.defaults))
        self._copy_options(self.inner.param_groups, self.param_groups)
        self._by_parameter = steps_by_parameter(self.inner)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step all parameters that have a gradient.

        Args:
            closure (`Callable`, *optional*): Computes the loss and the gradients first.

        Returns:
            `float` or `None`: what the closure returned.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        if self._by_parameter:
            for number, group in enumerate(self.param_groups):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self.step_parameter(number, parameter)
        else:
            self._call(self.inner.step, with_gradients=True)
        self.advance()
        return loss

    @torch.no_grad()
    def step_parameter(self, number: int, parameter: torch.nn.Parameter) -> None:
        """Step one parameter, without counting an update.

        Args:
            number (`int`): Its group's number.
            parameter (`torch.nn.Parameter`): It has a gradient.
        """
        self._copy_options(self.param_groups, self.inner.param_groups)
        with self._raised([parameter]):
            step_alone(self.inner, self.inner.param_groups[number], self._working[parameter])

    def advance(self) -> None:
        """Count an update; [`step`] does it itself."""
        for group in self.param_groups:
            group[_UPDATES] += 1

    def train(self) -> None:
        """Do what a schedule-free optimizer does before training; others do nothing."""
        self._switch("train")

    def eval(self) -> None:
        """Do what a schedule-free optimizer does before validation and saving; others do nothing."""
        self._switch("eval")

    @torch.no_grad()
    def _switch(self, name: str) -> None:
        if hasattr(self.inner, name):
            self._call(getattr(self.inner, name), with_gradients=False)

    def _call(self, method: Callable[[], Any], with_gradients: bool) -> None:
        """Call a method of the optimizer with all weights in float32."""
        self._copy_options(self.param_groups, self.inner.param_groups)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if with_gradients:
            parameters = [parameter for parameter in parameters if parameter.grad is not None]
        with self._raised(parameters):
            method()
        self._copy_options(self.inner.param_groups, self.param_groups)

    @contextmanager
    def _raised(self, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
        low = [parameter for parameter in parameters if parameter.dtype in LOW]
        for parameter in low:
            working = self._working[parameter]
            working.data = self.rule.raised(parameter)
            working.grad = None if parameter.grad is None else parameter.grad.float()
        yield
        for parameter in low:
            working = self._working[parameter]
            self.rule.lower(parameter, working.data, self.param_groups[0][_UPDATES])
            working.data, working.grad = _stand_in(parameter).data, None

    @staticmethod
    def _copy_options(source: Iterable[Mapping[str, Any]], target: Iterable[dict[str, Any]]) -> None:
        for old, new in zip(source, target):
            new.update({name: value for name, value in old.items() if name != "params"})

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's states, with what the rule keeps of each parameter.

        Returns:
            `dict[str, Any]`: as of any optimizer; nothing is copied.
        """
        found = self.inner.state_dict()
        states = {number: dict(state) for number, state in found["state"].items()}
        kept = self.rule.kept()
        for number, parameter in enumerate(self._numbered()):
            if parameter in kept:
                states.setdefault(number, {})[_KEPT] = kept[parameter]
        groups = [{**group} for group in found["param_groups"]]
        self._copy_options(self.param_groups, groups)
        return {**found, "state": states, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the states of another run.

        Args:
            state_dict (`Mapping[str, Any]`): What `state_dict` returned.

        Raises:
            ValueError: if the states are not those of these parameters and this rule.
        """
        states = {int(number): dict(state) for number, state in state_dict["state"].items()}
        kept, numbered = self.rule.kept(), self._numbered()
        found = {number: state.pop(_KEPT) for number, state in states.items() if _KEPT in state}
        wanted = {number for number, parameter in enumerate(numbered) if parameter in kept}
        if found.keys() != wanted or any(found[each].shape != kept[numbered[each]].shape for each in wanted):
            raise ValueError(
                "The states are not of these parameters under this rule of rounding: of "
                f"{len(wanted)} parameters something is kept, got {len(found)}. Use the rule of the first run."
            )
        rest = {number: state for number, state in states.items() if state}
        self.inner.load_state_dict({**state_dict, "state": rest})
        self._copy_options(state_dict["param_groups"], self.param_groups)
        for number, value in found.items():
            kept[numbered[number]].copy_(value)

    def _numbered(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _stand_in(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """Return what the optimizer knows a parameter as: float32 of its shape, without memory between steps."""
    if parameter.dtype not in LOW:
        return parameter
    return torch.nn.Parameter(torch.zeros((), device=parameter.device).expand(parameter.shape))


def check_dtypes(parameters: Mapping[str, torch.nn.Parameter], rule: str | None) -> None:
    """Check that steps of trained parameters are not rounded away.

    Args:
        parameters (`Mapping[str, torch.nn.Parameter]`): By name.
        rule (`str`, *optional*): The rule of rounding.

    Raises:
        ValueError: if parameters of 16 bits have no rule or one that does not know their data type, or there is a
            rule and no such parameter, or parameters are sharded.
    """
    low = {name: parameter.dtype for name, parameter in parameters.items() if parameter.dtype in LOW}
    if low and rule is None:
        raise ValueError(
            f"Trained parameters are {_types(low.values())}, in which small steps are rounded away: "
            f"{list_keys(low)}. Train them in float32, or choose a rule of rounding: {', '.join(RULES)}."
        )
    if rule is None:
        return
    sharded = [name for name, parameter in parameters.items() if hasattr(parameter, "to_local")]
    if sharded:
        raise ValueError(
            f"Rounding {rule!r} does not work on parameters that are sharded over processes: {list_keys(sharded)}. "
            "Shard float32 parameters, and leave `rounding` out."
        )
    if not low:
        raise ValueError(
            f"The rule of rounding {rule!r} is for parameters in bfloat16 or float16, but no trained parameter is. "
            "Leave it out."
        )
    wrong = {name: dtype for name, dtype in low.items() if dtype not in choose(RULES, rule, "rule of rounding").dtypes}
    if wrong:
        raise ValueError(
            f"The rule of rounding {rule!r} works in bfloat16, but these parameters are {_types(wrong.values())}: "
            f"{list_keys(wrong)}. Choose 'kahan' or 'masters'."
        )


def _types(dtypes: Iterable[torch.dtype]) -> str:
    return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))
