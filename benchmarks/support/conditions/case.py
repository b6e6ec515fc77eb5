"""A condition's inputs for a tiny call, and another value of each; values that several conditions share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusers_flux_ext import FluxCondition


LEFT, TOP = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5)
PICTURE, OTHER_PICTURE = torch.rand(2, 1, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class ConditionCase:
    """Attributes:
    make (`type`):
        The condition's class.
    inputs (`Mapping[str, Any]`):
        What it is made from.
    changes (`Mapping[str, Mapping[str, Any]]`):
        For each input that a user may give, the inputs to replace so that this one differs.
    fixed (`Mapping[str, str]`):
        The inputs that no change is made to, each with the reason.
    channels (`int`):
        Channels that it adds, which the transformer must take.
    """

    make: type[FluxCondition]
    inputs: Mapping[str, Any]
    changes: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, str] = field(default_factory=dict)
    channels: int = 0

    def build(self, change: str | None = None) -> FluxCondition:
        """The condition, with another value of the input `change`."""
        return self.make(**{**self.inputs, **(self.changes[change] if change else {})})
