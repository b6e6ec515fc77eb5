"""What a condition is, and the set of conditions of one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ._compat import has_offload_hook
from .canvas import Canvas
from .denoise import DenoisingStep, PromptEmbeds
from .guidance import combine_velocities
from .sequence import Contribution


if TYPE_CHECKING:
    from .pipeline.conditioned import FluxConditionedPipeline


@dataclass(frozen=True, eq=False)
class FluxCondition(ABC):
    """One method's part in a denoising loop. Subclasses are frozen dataclasses of user inputs and the module they use.

    `encode` holds what is frozen and can be cached (text encoders, VAE); the condition's own, possibly trainable,
    module runs in `contribute`, so that training reaches it.
    """

    per_step: ClassVar[bool] = False
    """Whether `contribute` depends on the step; otherwise it runs once per branch and `phase`."""

    once: ClassVar[bool] = False
    """Whether at most one condition of this class may run in a call."""

    own_placement: ClassVar[tuple[str, ...]] = ()
    """Fields with modules that run in `encode` only, on a device and in a data type of their own."""

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

    def prepare(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Mapping[str, torch.Tensor]:
        """What the condition's own module makes of `encoded` that holds for all steps of a branch.

        It runs at the branch's first step. The later methods find these tensors in `encoded`, and do without them
        where they are called on their own, as in training.
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

    def combine_velocities(
        self, step: DenoisingStep, cond: torch.Tensor, uncond: torch.Tensor, true_cfg_scale: float
    ) -> torch.Tensor | None:
        """The guided velocity, where the method has a rule of its own, or `None`. At most one condition may have one.

        Args:
            step (`DenoisingStep`): The step of the conditional branch.
            cond (`torch.Tensor` of shape `(batch_size, target_length, channels)`): Velocity with the prompt.
            uncond (`torch.Tensor` of the same shape): Velocity with the negative prompt.
            true_cfg_scale (`float`): Scale of classifier-free guidance.

        Returns:
            `torch.Tensor` of the same shape, or `None`.
        """
        return None

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
        self._prepared: dict[tuple[str, int], Mapping[str, torch.Tensor]] = {}
        self._once: dict[tuple[str, int, Hashable], tuple[Contribution, torch.Tensor]] = {}
        self._shared: dict[tuple[int, int], Contribution] = {}

    def with_prompt(self, step: DenoisingStep) -> DenoisingStep:
        """The step with the prompt that a condition puts in place of the text encoders', if one does."""
        replaced: list[tuple[str, PromptEmbeds]] = []
        for index, condition in enumerate(self.conditions):
            prompt = condition.replace_prompt(self._given(index, step), step)
            if prompt is not None:
                replaced.append((type(condition).__name__, prompt))
        _check_single([name for name, _ in replaced], "replaces the prompt")
        return replace(step, prompt=replaced[0][1]) if replaced else step

    def _given(self, index: int, step: DenoisingStep) -> Mapping[str, torch.Tensor]:
        key, encoded = (step.branch, index), self.encoded[index]
        if key not in self._prepared:
            prepared = self.conditions[index].prepare(encoded, step)
            self._prepared[key] = {**encoded, **prepared} if prepared else encoded
        return self._prepared[key]

    def combine_velocities(
        self, step: DenoisingStep, cond: torch.Tensor, uncond: torch.Tensor, true_cfg_scale: float
    ) -> torch.Tensor:
        """The guided velocity: by the rule of the condition that has one, or the ordinary one."""
        guided = [
            (type(condition).__name__, velocity)
            for condition in self.conditions
            if (velocity := condition.combine_velocities(step, cond, uncond, true_cfg_scale)) is not None
        ]
        _check_single([name for name, _ in guided], "has its own rule of guidance")
        return guided[0][1] if guided else combine_velocities(cond, uncond, true_cfg_scale)

    def contributions(self, step: DenoisingStep) -> list[Contribution]:
        """What every condition adds to this step."""
        return [self._contribution(index, step) for index in range(len(self.conditions))]

    def _contribution(self, index: int, step: DenoisingStep) -> Contribution:
        condition, encoded = self.conditions[index], self._given(index, step)
        if condition.shares_branches:
            shared = (step.index, index)
            if shared not in self._shared:
                self._shared[shared] = condition.contribute(encoded, step)
            return self._shared[shared]
        if condition.per_step:
            return condition.contribute(encoded, step)
        key, prompt = (step.branch, index, condition.phase(step)), step.prompt.hidden_states
        if key not in self._once:
            self._once[key] = (condition.contribute(encoded, step), prompt)
        return _follow_prompt(*self._once[key], prompt)

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


def _follow_prompt(contribution: Contribution, before: torch.Tensor, prompt: torch.Tensor) -> Contribution:
    """Text groups that repeat the prompt change with it, where a condition replaces the prompt at each step."""
    if prompt is before or not any(group.hidden_states is before for group in contribution.text):
        return contribution
    text = [
        replace(each, hidden_states=prompt) if each.hidden_states is before else each for each in contribution.text
    ]
    return replace(contribution, text=text)


def _check_single(names: Sequence[str], what: str) -> None:
    if len(names) > 1:
        raise ValueError(
            f"Each of {' and '.join(names)} {what}, so they cannot run together. Leave all but one of them out."
        )


def check_conditions(conditions: Any) -> list[FluxCondition]:
    """The conditions as a list; raises an error that names what is not a condition, or may not come twice."""
    if conditions is None:
        return []
    given = list(conditions) if isinstance(conditions, (list, tuple)) else [conditions]
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
        if not isinstance(module, torch.nn.Module) or name in condition.own_placement or has_offload_hook(module):
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
