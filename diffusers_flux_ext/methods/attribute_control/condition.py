"""AttriCtrl: attributes of the image, such as its brightness, by numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...inputs.checks import shown
from ...inputs.numbers import read_number
from ...inputs.text import check_text_width, text_group
from ...sequence import Contribution
from .encoder import AttributeValueEncoder


AttributeInput = Mapping[str, float | Sequence[float] | None]


@dataclass(frozen=True, eq=False)
class AttributeValues(FluxCondition):
    """Attributes by numbers, AttriCtrl ([model](https://modelscope.cn/models/DiffSynth-Studio/AttriCtrl-FLUX.1-Dev)).

    Every value becomes a text group of 32 tokens in the released models. It hides no tokens from each other.

    Args:
        encoder (`AttributeValueEncoder`): Knows the attributes; on the pipeline's device and of its dtype.
        values (`Mapping[str, float | Sequence[float] | None]`):
            A value in [0, 1] by attribute, for example `{"brightness": 0.7}`, or one per prompt. `None` skips the
            attribute, and so does leaving it out. With all of them skipped the condition has no effect.
        negative (`"same"`, a mapping like `values`, or `None`, defaults to `"same"`):
            What the unconditional branch gets: the same values as the reference, values of its own, or nothing.

    Raises:
        TypeError: if `encoder` is something else, or values are not a mapping of numbers.
        ValueError: if an attribute is unknown, or a value lies outside [0, 1].
    """

    encoder: AttributeValueEncoder
    values: AttributeInput
    negative: Literal["same"] | AttributeInput | None = "same"

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, AttributeValueEncoder):
            raise TypeError(
                f"`encoder` of AttributeValues is a {type(self.encoder).__name__}; expected an "
                f"`AttributeValueEncoder`, for example from "
                f"`AttributeValueEncoder.from_single_file('brightness.safetensors')`."
            )
        self._check("values", self.values)
        if isinstance(self.negative, str) and self.negative != "same":
            raise ValueError(
                f"`negative` of AttributeValues is {self.negative!r}; expected 'same', a mapping like `values`, or "
                f"None."
            )
        if self.negative is not None and not isinstance(self.negative, str):
            self._check("negative", self.negative)

    def demand(self, prompt_tokens: int) -> Demand:
        """Count the tokens of every value."""
        return Demand(appended_tokens=len(self.values) * self.encoder.config.num_tokens)

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Turn the values into tensors.

        Args:
            pipe (`Encoders`): Gives the transformer, whose text must be as wide as the tokens.
            canvas (`Canvas`): Gives the batch and the device.

        Returns:
            `dict[str, torch.Tensor]`: `"cond.<attribute>"` and `"uncond.<attribute>"`, each `(1 or num_samples,)` in
            float32.

        Raises:
            ValueError: if the encoder does not fit the transformer, or the values do not fit the batch.
        """
        check_text_width(type(self).__name__, self.encoder.config.output_dim, pipe.transformer)
        negative: Any = self.values if self.negative == "same" else self.negative or {}
        branches: dict[str, Any] = {"cond": ("values", self.values), "uncond": ("negative", negative)}
        return {
            f"{branch}.{name}": canvas.per_sample(
                torch.tensor(_read_values(f"`{argument}[{name!r}]` of AttributeValues", value), dtype=torch.float32),
                f"`{argument}` of AttributeValues",
            ).to(canvas.device)
            for branch, (argument, values) in branches.items()
            for name, value in values.items()
            if value is not None
        }

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return a text group `value_<attribute>` for every value of this branch."""
        groups = []
        for name in self.encoder.config.attributes:
            values = encoded.get(f"{step.branch}.{name}")
            if values is not None:
                groups.append(text_group(f"value_{name}", self.encoder(values, name), step, in_prompt=True))
        return Contribution(text=groups)

    def _check(self, argument: str, values: Any) -> None:
        known = list(self.encoder.config.attributes)
        if not isinstance(values, Mapping):
            raise TypeError(
                f"`{argument}` of AttributeValues is {shown(values)}; expected values by attribute, "
                f"{dict.fromkeys(known, 0.5)}."
            )
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"`{argument}` of AttributeValues has the attributes {unknown}, but the encoder knows {known}."
            )
        for name, value in values.items():
            if value is not None:
                _read_values(f"`{argument}[{name!r}]` of AttributeValues", value)


def _read_values(what: str, value: Any) -> list[float]:
    """Read one number for all prompts, or one each, from 0 to 1."""
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    one_axis = isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 1
    numbers = list(value) if several or one_axis else [value]
    if not numbers:
        raise ValueError(f"{what} is empty. Give a number from 0 to 1, one per prompt, or None to skip it.")
    return [read_number(what, number, 0, 1) for number in numbers]
