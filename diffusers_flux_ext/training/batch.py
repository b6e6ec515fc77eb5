"""Samples after stage one, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..condition import FluxCondition


@dataclass(frozen=True, eq=False)
class TeacherPath:
    """Where a teacher's sampler passes from noise to an image.

    Args:
        states (`torch.Tensor` of shape `(batch_size, steps + 1, length, 64)` or `(batch_size, 2, length, 64)`):
            Packed latents at the borders of the student's steps, or at the path's ends alone: the noise first, the
            teacher's image last.
        sigmas (`torch.Tensor` of shape `(steps + 1,)`): Noise levels at the borders, falling.
    """

    states: torch.Tensor
    sigmas: torch.Tensor


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """What stage one knows of a sample: everything frozen models compute, so all of it can be cached.

    Tensors are on the CPU, with a batch dimension of 1.

    Args:
        index (`int`): Its number in the data set, the same in all epochs and processes.
        height (`int`): Pixels.
        width (`int`): Pixels.
        latents (`torch.Tensor` of shape `(1, length, 64)`): Packed, scaled latents: the posterior's mean.
        prompts (`Mapping[str, tuple[torch.Tensor, torch.Tensor]]`):
            Variants of the caption by text, each with the T5 hidden states `(1, text_length, 4096)` and CLIP's pooled
            output `(1, 768)`. The empty text is the caption that is dropped.
        conditions (`Sequence[Mapping[str, torch.Tensor]]`): What the `encode` of each condition returned.
        deviation (`torch.Tensor` of shape `(1, length, 64)`, *optional*):
            Packed, scaled standard deviation of the posterior, if latents are to be sampled.
        mask (`torch.Tensor` of shape `(1, length)`, *optional*): Weights of the tokens in the loss, in [0, 1].
        weight (`float`, defaults to 1.0): Weight of the sample's loss.
        preserved (`bool`, defaults to `False`): Whether the base's own prediction is the target.
        path (`TeacherPath`, *optional*): What a student imitates, in distillation.
        strength (`float`, defaults to 1.0): How strongly a slider acts on it, in [-1, 1].
    """

    index: int
    height: int
    width: int
    latents: torch.Tensor
    prompts: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    conditions: Sequence[Mapping[str, torch.Tensor]] = ()
    deviation: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    weight: float = 1.0
    preserved: bool = False
    path: TeacherPath | None = None
    strength: float = 1.0

    def signature(self) -> tuple[Any, ...]:
        """Return what must agree within a batch: the size, the text's length and the shapes of all conditions.

        Returns:
            `tuple`: hashable.
        """
        lengths = {hidden_states.shape[1] for hidden_states, _ in self.prompts.values()}
        shapes = tuple(
            tuple(sorted((name, tuple(value.shape)) for name, value in encoded.items())) for encoded in self.conditions
        )
        return self.height, self.width, tuple(sorted(lengths)), self.mask is None, shapes


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """What [`FluxTraining`] takes: several samples of one shape, with noise and noise levels.

    Args:
        latents (`torch.Tensor` of shape `(batch_size, length, 64)`): Clean packed latents.
        noise (`torch.Tensor` of the same shape): Standard normal noise.
        sigma (`torch.Tensor` of shape `(batch_size,)`): Noise levels in [0, 1]; 1 is pure noise.
        latent_ids (`torch.Tensor` of shape `(length, 3)`): Rotary positions.
        prompt_embeds (`torch.Tensor` of shape `(batch_size, text_length, 4096)`): T5 hidden states.
        pooled_prompt_embeds (`torch.Tensor` of shape `(batch_size, 768)`): CLIP's pooled output.
        guidance (`torch.Tensor` of shape `(batch_size,)`, *optional*): For guidance-distilled models.
        conditions (`Sequence[Mapping[str, torch.Tensor]]`): Encoded inputs of each condition, for all samples.
        keep (`torch.Tensor` of shape `(conditions, batch_size)`, *optional*):
            Boolean. False drops a condition from a sample; by default all are kept.
        mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): Weights of the tokens in the loss.
        weight (`torch.Tensor` of shape `(batch_size,)`, *optional*): Weights of the samples; 1 by default.
        preserved (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Boolean. True takes the base's own prediction as the target.
        indices (`torch.Tensor` of shape `(batch_size,)`, *optional*): The samples' numbers in the data set.
        texts (`Sequence[str]`, *optional*): The captions, for text encoders that are trained.
        schedule (`torch.Tensor` of shape `(steps + 1,)`, *optional*):
            Falling noise levels of a sampler. With them the loss is that of what the sampler makes of `noise`,
            compared with `latents`; `sigma` only serves reports.
        strength (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            What a slider's LoRA is scaled by; 1 by default.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    latent_ids: torch.Tensor
    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    guidance: torch.Tensor | None = None
    conditions: Sequence[Mapping[str, torch.Tensor]] = field(default=())
    keep: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    preserved: torch.Tensor | None = None
    indices: torch.Tensor | None = None
    texts: Sequence[str] | None = None
    schedule: torch.Tensor | None = None
    strength: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.latents.shape[0]

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Return the batch on another device."""
        moved = {each.name: _moved(getattr(self, each.name), device) for each in fields(self)}
        return replace(self, **moved)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(each, device) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_moved(each, device) for each in value)
    return value


def stack_conditions(
    conditions: Sequence[FluxCondition], samples: Sequence[Sequence[Mapping[str, torch.Tensor]]]
) -> tuple[dict[str, torch.Tensor], ...]:
    """Stack what each condition encoded for several samples.

    Args:
        conditions (`Sequence[FluxCondition]`): The conditions.
        samples (`Sequence[Sequence[Mapping[str, torch.Tensor]]]`): For each sample, what each condition encoded.

    Returns:
        `tuple[dict[str, torch.Tensor], ...]`: for each condition, tensors of one entry per sample. Those that a
        condition declares as shared (see `shared` of [`FluxCondition`]) are the first sample's.

    Raises:
        ValueError: if samples differ in what must agree.
    """
    stacked = []
    for place, condition in enumerate(conditions):
        parts = [sample[place] for sample in samples]
        name = type(condition).__name__
        if any(part.keys() != parts[0].keys() for part in parts):
            raise ValueError(
                f"The samples of a batch have different inputs of {name}: {[sorted(part) for part in parts]}. Batch "
                f"samples by their `signature()`."
            )
        stacked.append({key: _stack(condition, key, [part[key] for part in parts]) for key in parts[0]})
    return tuple(stacked)


def _stack(condition: FluxCondition, key: str, values: Sequence[torch.Tensor]) -> torch.Tensor:
    what = f"{key!r} of {type(condition).__name__}"
    if any(value.shape != values[0].shape for value in values):
        raise ValueError(
            f"The samples of a batch differ in {what}: got the shapes {[tuple(value.shape) for value in values]}. "
            f"Batch samples by their `signature()`."
        )
    if not any(fnmatchcase(key, pattern) for pattern in condition.shared):
        return torch.cat(list(values))
    if not all(torch.equal(value, values[0]) for value in values):
        raise ValueError(
            f"The samples of a batch differ in {what}, which holds for a whole batch. Train them in batches of one."
        )
    return values[0]
