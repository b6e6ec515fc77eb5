"""What a condition is, and the set of conditions of one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .._compat import has_offload_hook
from ..denoise import DenoisingStep, PromptEmbeds
from ..latents import Canvas
from ..sequence import Contribution


if TYPE_CHECKING:
    from ..pipelines.pipeline_flux_conditioned import FluxConditionedPipeline


@dataclass(frozen=True, eq=False)
class FluxCondition(ABC):
    """One method's part in a denoising loop. Subclasses are frozen dataclasses of user inputs and the module they use.

    `encode` holds what is frozen and can be cached (text encoders, VAE); the condition's own, possibly trainable,
    module runs in `contribute`, so that training reaches it.
    """

    per_step: ClassVar[bool] = False
    """Whether `contribute` depends on the step; otherwise it runs once per branch and `phase`."""

    replaces_prompt_once: ClassVar[bool] = False
    """Whether `replace_prompt` gives the same at every step of a branch; it then runs once per branch."""

    once: ClassVar[bool] = False
    """Whether at most one condition of this class may run in a call."""

    @property
    def shares_branches(self) -> bool:
        """Whether the unconditional branch takes what `contribute` gave the conditional one at the same step."""
        return False

    @property
    def pastes(self) -> bool:
        """Whether `after_decode` puts pixels of a given picture back; at most one condition of a call may."""
        return False

    def encode(self, pipe: FluxConditionedPipeline, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Turn the user's inputs into tensors, once per call.

        Args:
            pipe (`FluxConditionedPipeline`): Gives the text encoders, the VAE and the processors.
            canvas (`Canvas`): Size, batch, device and data type.

        Returns:
            `dict[str, torch.Tensor]`: plain tensors, of one entry for all prompts or one per sample.
        """
        return {}

    def replace_prompt(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> PromptEmbeds | None:
        """A prompt that replaces the text encoders' at this step, or `None`. At most one condition may replace it."""
        return None

    def phase(self, step: DenoisingStep) -> Hashable:
        """Names the part of the schedule: what `contribute` returned in a phase is used again at its other steps."""
        return None

    @abstractmethod
    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """What this condition adds to one call of the transformer.

        Args:
            encoded (`Mapping[str, torch.Tensor]`): What `encode` returned.
            step (`DenoisingStep`): The step; its branch is `"cond"` or `"uncond"`.

        Returns:
            `Contribution`: empty for a branch that the condition leaves alone.
        """

    def after_step(
        self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep, latents: torch.Tensor
    ) -> torch.Tensor:
        """The latents `(batch_size, length, 64)` to go on with after the scheduler's step."""
        return latents

    def after_decode(self, encoded: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """The pictures `(batch_size, 3, height, width)` in [-1, 1] to return after decoding."""
        return images


class EncodedConditions:
    """The conditions of one call, encoded once, in one object that the loop can ask.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline.
        conditions (`Sequence[FluxCondition]`): The conditions.
        canvas (`Canvas`): The canvas.

    Raises:
        ValueError: if a condition's module is on another device or of another data type.
    """

    def __init__(self, pipe: FluxConditionedPipeline, conditions: Sequence[FluxCondition], canvas: Canvas) -> None:
        self.conditions = conditions
        for condition in conditions:
            _check_modules(condition, canvas)
        self.encoded = [condition.encode(pipe, canvas) for condition in conditions]
        self._once: dict[tuple[str, int, Hashable], Contribution] = {}
        self._shared: dict[tuple[int, int], Contribution] = {}
        self._prompts: dict[tuple[str, int], PromptEmbeds | None] = {}

    def with_prompt(self, step: DenoisingStep) -> DenoisingStep:
        """The step with the prompt that a condition puts in place of the text encoders', if one does."""
        replaced: list[tuple[str, PromptEmbeds]] = []
        for index, condition in enumerate(self.conditions):
            prompt = self._replaced_prompt(index, step)
            if prompt is not None:
                replaced.append((type(condition).__name__, prompt))
        if len(replaced) > 1:
            raise ValueError(
                f"Each of {' and '.join(name for name, _ in replaced)} replaces the prompt, so they cannot run "
                f"together. Leave all but one of them out."
            )
        return replace(step, prompt=replaced[0][1]) if replaced else step

    def _replaced_prompt(self, index: int, step: DenoisingStep) -> PromptEmbeds | None:
        condition, encoded = self.conditions[index], self.encoded[index]
        if not condition.replaces_prompt_once:
            return condition.replace_prompt(encoded, step)
        key = (step.branch, index)
        if key not in self._prompts:
            self._prompts[key] = condition.replace_prompt(encoded, step)
        return self._prompts[key]

    def contributions(self, step: DenoisingStep) -> list[Contribution]:
        """What every condition adds to this step."""
        return [self._contribution(index, step) for index in range(len(self.conditions))]

    def _contribution(self, index: int, step: DenoisingStep) -> Contribution:
        condition, encoded = self.conditions[index], self.encoded[index]
        if condition.shares_branches:
            shared = (step.index, index)
            if shared not in self._shared:
                self._shared[shared] = condition.contribute(encoded, step)
            return self._shared[shared]
        if condition.per_step:
            return condition.contribute(encoded, step)
        key = (step.branch, index, condition.phase(step))
        if key not in self._once:
            self._once[key] = condition.contribute(encoded, step)
        return self._once[key]

    def after_step(self, step: DenoisingStep, latents: torch.Tensor) -> torch.Tensor:
        """The latents to go on with."""
        self._shared.clear()
        for condition, encoded in zip(self.conditions, self.encoded):
            latents = condition.after_step(encoded, step, latents)
        return latents

    def after_decode(self, images: torch.Tensor) -> torch.Tensor:
        """The pictures to return."""
        for condition, encoded in zip(self.conditions, self.encoded):
            images = condition.after_decode(encoded, images)
        return images


def check_conditions(conditions: Any) -> list[FluxCondition]:
    """The conditions as a list; raises an error that names what is not a condition, or may not come twice."""
    if conditions is None:
        return []
    given = list(conditions) if isinstance(conditions, Sequence) else [conditions]
    wrong = [type(condition).__name__ for condition in given if not isinstance(condition, FluxCondition)]
    if wrong:
        raise TypeError(
            f"`conditions` takes conditions such as `EntityRegions(...)`, but it holds {wrong}. Give a list of "
            f"`FluxCondition` instances."
        )
    names = [type(condition).__name__ for condition in given if condition.once]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{names.count(name)} conditions of the class {name} were given, but each would undo the others' "
                f"work. Join them into one, for example their masks."
            )
    pasting = [type(condition).__name__ for condition in given if condition.pastes]
    if len(pasting) > 1:
        raise ValueError(
            f"Each of {' and '.join(pasting)} pastes its picture back after decoding, so the last one would win. Give "
            f"`paste_back=False` to those that take it, so that one is left."
        )
    return given


def _check_modules(condition: FluxCondition, canvas: Canvas) -> None:
    modules = {field.name: getattr(condition, field.name) for field in fields(condition)}
    for name, module in modules.items():
        if not isinstance(module, torch.nn.Module) or has_offload_hook(module):
            continue
        weight = next(module.parameters(), None)
        if weight is None:
            continue
        if not _same_device(weight.device, canvas.device) or (
            weight.is_floating_point() and weight.dtype != canvas.dtype
        ):
            raise ValueError(
                f"`{name}` of {type(condition).__name__} is {weight.dtype} on {weight.device}, but the pipeline runs "
                f"in {canvas.dtype} on {canvas.device}. Move it with `.to({str(canvas.device)!r}, {canvas.dtype})`."
            )


def _same_device(one: torch.device, other: torch.device) -> bool:
    # A device without an index is the current one: group offloading reports it so.
    return one.type == other.type and (None in (one.index, other.index) or one.index == other.index)
