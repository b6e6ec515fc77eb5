"""Groups of parameters with a learning rate and a weight decay of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...checkpoints.messages import list_keys


# The second matrix of a LoRA, which starts at zero: PEFT's names, and those of other trainers.
_SECOND_MATRIX = re.compile(r"(^|[._])(lora_B|lora_embedding_B|lora_up)([._]|$)")


@dataclass(frozen=True)
class GroupRule:
    """What is different for some parameters.

    Args:
        pattern (`str`): A regular expression that is searched for in the parameters' names.
        lr (`float`, *optional*): Their learning rate; 0 is allowed and leaves them as they are.
        weight_decay (`float`, *optional*): Their weight decay.

    Raises:
        ValueError: if the pattern is not a regular expression, or nothing is different.
    """

    pattern: str
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"`pattern` {self.pattern!r} is not a regular expression: {error}.") from error
        if self.lr is None and self.weight_decay is None:
            raise ValueError(f"The rule for {self.pattern!r} changes nothing: give `lr` or `weight_decay`.")
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` of the rule for {self.pattern!r} must be at least 0, got {value}.")


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter],
    lr: float,
    weight_decay: float,
    rules: Sequence[GroupRule] = (),
    lora_plus: float | None = None,
) -> list[dict[str, Any]]:
    """Sort parameters into groups of one learning rate and one weight decay.

    Args:
        parameters (`Mapping[str, torch.nn.Parameter]`): By name.
        lr (`float`): Learning rate of those without a rule.
        weight_decay (`float`): Weight decay of those without a rule.
        rules (`Sequence[GroupRule]`): The first that fits a name counts.
        lora_plus (`float`, *optional*):
            How much larger the learning rate of LoRAs' second matrices is
            ([LoRA+](https://huggingface.co/papers/2402.12354), which recommends 4 to 16).

    Returns:
        `list[dict[str, Any]]`: groups for an optimizer, with `"params"`, `"lr"`, `"weight_decay"` and `"peak_lr"`,
        which [`set_rates`] reads.

    Raises:
        ValueError: if a rule or `lora_plus` concerns no parameter.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    used: set[GroupRule] = set()
    for name, parameter in parameters.items():
        rule = next((rule for rule in rules if re.search(rule.pattern, name)), None)
        if rule is not None:
            used.add(rule)
        rate = lr if rule is None or rule.lr is None else rule.lr
        decay = weight_decay if rule is None or rule.weight_decay is None else rule.weight_decay
        if lora_plus is not None and _SECOND_MATRIX.search(name):
            rate *= lora_plus
        empty = {"params": [], "lr": rate, "weight_decay": decay, "peak_lr": rate}
        groups.setdefault((rate, decay), empty)["params"].append(parameter)
    _check_used(parameters, [rule for rule in rules if rule not in used], lora_plus)
    return list(groups.values())


def _check_used(names: Iterable[str], unused: Sequence[GroupRule], lora_plus: float | None) -> None:
    names = list(names)
    if unused:
        patterns = [rule.pattern for rule in unused]
        raise ValueError(
            f"No trained parameter is left for the patterns {patterns}: they fit no name, or an earlier rule took all "
            f"that they fit. The names are {list_keys(names)}."
        )
    if lora_plus is not None and not any(map(_SECOND_MATRIX.search, names)):
        raise ValueError(
            f"`lora_plus` {lora_plus} is the ratio of the rates of `lora_B` and `lora_A`, but no trained parameter is "
            f"called so. The names are {list_keys(names)}."
        )
