"""The conditions of one call, encoded once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from ._compat import has_offload_hook
from .canvas import Canvas
from .condition import Encoders, FluxCondition
from .denoise import DenoisingStep, PromptEmbeds, extend_prompt
from .dropping import drop_contribution, drop_prompt
from .guidance import combine_velocities
from .sequence import Contribution, rename_groups


class EncodedConditions:
    """The conditions of one call, encoded once, in one object that the loop queries.

    Args:
        parts (`Encoders`): The pipeline, or a stand-in.
        conditions (`Sequence[FluxCondition]`): The conditions.
        canvas (`Canvas`): The canvas.

    Raises:
        ValueError: if a condition's module is on another device or of another data type.
    """

    def __init__(self, parts: Encoders, conditions: Sequence[FluxCondition], canvas: Canvas) -> None:
        for condition in conditions:
            _check_modules(condition, canvas)
        self._hold(conditions, [condition.encode(parts, canvas) for condition in conditions])

    @classmethod
    def from_tensors(
        cls,
        conditions: Sequence[FluxCondition],
        encoded: Sequence[Mapping[str, torch.Tensor]],
        keep: torch.Tensor | None = None,
    ) -> EncodedConditions:
        """Combine conditions with tensors that their `encode` returned earlier, as in training.

        Take a new object for each backward pass: it keeps what a module returned in `contribute`.

        Args:
            conditions (`Sequence[FluxCondition]`): The conditions.
            encoded (`Sequence[Mapping[str, torch.Tensor]]`): What the `encode` of each returned.
            keep (`torch.Tensor` of shape `(conditions, batch_size)`, *optional*):
                Boolean. False leaves a condition out of a sample; see [`drop_contribution`].

        Returns:
            `EncodedConditions`: call [`with_prompt`] and, with that step, [`contributions`].
        """
        if len(conditions) != len(encoded):
            raise ValueError(f"`encoded` has {len(encoded)} entries for {len(conditions)} conditions. Give one each.")
        made = cls.__new__(cls)
        made._hold(conditions, encoded, keep)
        return made

    def _hold(
        self,
        conditions: Sequence[FluxCondition],
        encoded: Sequence[Mapping[str, torch.Tensor]],
        keep: torch.Tensor | None = None,
    ) -> None:
        self.conditions, self.encoded, self._keep = conditions, encoded, keep
        self._prepared: dict[tuple[str, int], Mapping[str, torch.Tensor]] = {}
        self._kept: dict[tuple[int, Hashable], tuple[Contribution, torch.Tensor]] = {}
        self._used: set[tuple[int, Hashable]] = set()
        kinds = [type(condition) for condition in conditions]
        self._numbers = [kinds[:index].count(kind) for index, kind in enumerate(kinds)]
        self._whole: dict[str, tuple[list[Any], PromptEmbeds]] = {}

    def with_prompt(self, step: DenoisingStep) -> DenoisingStep:
        """Return the step, with the prompt that a condition substitutes for the text encoders', if one does."""
        replaced: list[tuple[str, PromptEmbeds]] = []
        for index, condition in enumerate(self.conditions):
            prompt = condition.replace_prompt(self._given(index, step), step)
            if prompt is not None:
                name = type(condition).__name__
                kept = prompt if self._keep is None else drop_prompt(prompt, step.prompt, self._keep[index], name)
                replaced.append((name, kept))
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
        """Return the guided velocity, by the rule of the condition that has one or by classifier-free guidance."""
        guided = [
            (type(condition).__name__, velocity)
            for condition in self.conditions
            if (velocity := condition.combine_velocities(step, cond, uncond, true_cfg_scale)) is not None
        ]
        _check_single([name for name, _ in guided], "has its own rule of guidance")
        return guided[0][1] if guided else combine_velocities(cond, uncond, true_cfg_scale)

    def contributions(self, step: DenoisingStep) -> list[Contribution]:
        """Return what every condition adds to this step, in the order of the conditions."""
        last = [index for index, condition in enumerate(self.conditions) if condition.sees_whole_prompt]
        made = {index: self._contribution(index, step) for index in range(len(self.conditions)) if index not in last}
        if last:
            step = replace(step, prompt=self._whole_prompt(step, list(made.values())))
            made |= {index: self._contribution(index, step) for index in last}
            self._check_append_nothing(last, made)
        return [made[index] for index in range(len(self.conditions))]

    def share_with(self, step: DenoisingStep, other: DenoisingStep) -> None:
        """Make what serves both branches from the step of the first, where only the other one is computed.

        Args:
            step (`DenoisingStep`): The step of the branch that makes it.
            other (`DenoisingStep`): That of the branch that is computed.
        """
        keys = [(condition.reuse(step), condition.reuse(other)) for condition in self.conditions]
        if any(key is not None and key == also for key, also in keys):
            self.contributions(self.with_prompt(step))

    def _whole_prompt(self, step: DenoisingStep, contributions: Sequence[Contribution]) -> PromptEmbeds:
        prompt, groups = step.prompt, [group for part in contributions for group in part.text]
        parts: list[Any] = [prompt.hidden_states, prompt.pooled, prompt.ids, prompt.mask]
        parts += [part for group in groups for part in (group.hidden_states, group.in_prompt)]
        known = self._whole.get(step.branch)
        if known is None or len(known[0]) != len(parts) or any(old is not new for old, new in zip(known[0], parts)):
            known = self._whole[step.branch] = parts, extend_prompt(prompt, contributions)
        return known[1]

    def _check_append_nothing(self, indices: Sequence[int], made: Mapping[int, Contribution]) -> None:
        for index in indices:
            for group in made[index].text:
                if group.in_prompt is not False:
                    raise ValueError(
                        f"{type(self.conditions[index]).__name__} sees the whole prompt, so it cannot append "
                        f"{group.name!r} to it. Leave `in_prompt` of that group, or `sees_whole_prompt`, False."
                    )

    def _contribution(self, index: int, step: DenoisingStep) -> Contribution:
        condition, prompt = self.conditions[index], step.prompt.hidden_states
        reuse = condition.reuse(step)
        if reuse is None:
            return self._make(index, step)
        key = (index, reuse)
        self._used.add(key)
        if key not in self._kept or (condition.sees_whole_prompt and self._prompt_changed(key, step)):
            self._kept[key] = (self._make(index, step), prompt)
        return _follow_prompt(*self._kept[key], prompt)

    def _prompt_changed(self, key: tuple[int, Hashable], step: DenoisingStep) -> bool:
        # What is kept by the step's index serves both branches, whose prompts differ.
        shared = type(key[1]) is int and key[1] == step.index
        return not shared and self._kept[key][1] is not step.prompt.hidden_states

    def _make(self, index: int, step: DenoisingStep) -> Contribution:
        made = self.conditions[index].contribute(self._given(index, step), step)
        if self._keep is not None:
            made = drop_contribution(made, self._keep[index], type(self.conditions[index]).__name__)
        number = self._numbers[index]
        return rename_groups(made, f"@{number + 1}") if number else made

    def after_step(self, step: DenoisingStep, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents to continue with."""
        self._kept = {key: kept for key, kept in self._kept.items() if key in self._used}
        self._used = set()
        for condition, encoded in zip(self.conditions, self.encoded):
            latents = condition.after_step(encoded, step, latents)
        return latents

    def after_decode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images to return."""
        for condition, encoded in zip(self.conditions, self.encoded):
            images = condition.after_decode(encoded, images)
        return images


def _follow_prompt(contribution: Contribution, before: torch.Tensor, prompt: torch.Tensor) -> Contribution:
    """Replace text groups that repeat the prompt, where a condition replaces the prompt at each step."""
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
    # A device without an index is the current one; group offloading reports it that way.
    return one.type == other.type and (None in (one.index, other.index) or one.index == other.index)
