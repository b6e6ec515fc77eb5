"""What a pipeline of diffusers gives the transformer by itself, and what cannot run beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...condition import REFERENCE_POSITIONS, FluxCondition
from ...denoise import DenoisingStep
from ...sequence import Contribution, TokenGroup


OWN_REFERENCE = "pipeline_reference"
"""The name of the group of a Kontext pipeline's own image."""

_READ = frozenset(
    {"hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids", "guidance"}
    | {"joint_attention_kwargs", "controlnet_block_samples", "controlnet_single_block_samples"}
    | {"controlnet_blocks_repeat", "return_dict"}
)


def split_call(
    kwargs: Mapping[str, Any], num_tokens: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, Contribution]:
    """Split the arguments of a call of the transformer into the canvas and what the pipeline adds to it.

    Args:
        kwargs (`Mapping[str, Any]`): The arguments, by name.
        num_tokens (`int`): Tokens of the canvas, which come first.
        width (`int`): Channels of a token, which come first.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, Contribution]`: latents `(batch_size, num_tokens, width)`; their positions
        `(num_tokens, 3)`; and references, channels, residuals and attention arguments.

    Raises:
        ValueError: if there are arguments that diffusers did not have when this was written.
    """
    unknown = sorted(name for name in kwargs.keys() - _READ if kwargs[name] is not None)
    if unknown:
        raise ValueError(
            f"The pipeline gives the transformer {unknown}, which this version of diffusers_flux_ext does not know, "
            f"so conditions cannot run beside them. Detach them, or install a version of diffusers that it supports."
        )
    tokens, ids = kwargs["hidden_states"], kwargs["img_ids"]
    target, references = tokens[:, :num_tokens], tokens[:, num_tokens:]
    reference = [TokenGroup(OWN_REFERENCE, references, ids[num_tokens:])] if references.shape[1] else []
    given = Contribution(
        reference=reference,
        channels=[target[..., width:]] if target.shape[2] > width else [],
        block_residuals=kwargs.get("controlnet_block_samples") or (),
        single_block_residuals=kwargs.get("controlnet_single_block_samples") or (),
        residuals_repeat=bool(kwargs.get("controlnet_blocks_repeat")),
        attention_kwargs=dict(kwargs.get("joint_attention_kwargs") or {}),
    )
    return target[..., :width], ids[:num_tokens], given


def check_runs_beside(pipe: Any, conditions: Sequence[FluxCondition], contributions: Sequence[Contribution]) -> None:
    """Raise a `ValueError` that names both if a condition cannot run beside what the pipeline gives.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        conditions (`Sequence[FluxCondition]`): The conditions.
        contributions (`Sequence[Contribution]`): The pipeline's own part, followed by one for each condition.
    """
    own, *parts = contributions
    for condition, part in zip(conditions, parts):
        names = type(condition).__name__, type(pipe).__name__
        if part.channels:
            raise ValueError(
                f"{names[0]} adds {[channel.shape[2] for channel in part.channels]} channels to the canvas, and "
                f"{names[1]} makes all of the transformer's channels itself. Give {names[0]} to "
                f"`FluxConditionedPipeline.from_pipe(pipe)`, or leave it out."
            )
        if own.reference and condition.exclusive == REFERENCE_POSITIONS:
            raise ValueError(
                f"{names[0]} decides {REFERENCE_POSITIONS}, and the image of {names[1]} has one of them. Call the "
                f"pipeline without `image` and give that image to {names[0]}, too, or leave {names[0]} out."
            )


def check_guidance(
    pipe: Any, conditions: Sequence[FluxCondition], step: DenoisingStep, timesteps: torch.Tensor
) -> None:
    """Raise a `ValueError` that names both if a condition has a rule of guidance, which the pipeline does not ask for.

    Args:
        pipe (`DiffusionPipeline`): The pipeline, which combines the branches of guidance itself.
        conditions (`Sequence[FluxCondition]`): The conditions.
        step (`DenoisingStep`): The first step.
        timesteps (`torch.Tensor` of shape `(steps,)`): The timesteps of the loop.
    """
    for condition in conditions:
        if type(condition).combine_velocities is FluxCondition.combine_velocities:
            continue
        for index, t in enumerate(timesteps):
            later = replace(step, index=index, timestep=t.expand_as(step.timestep).to(step.timestep) / 1000)
            if condition.combine_velocities(later, step.latents, step.latents, 1.0) is not None:
                raise ValueError(
                    f"{type(condition).__name__} has its own rule of guidance at step {index}, and "
                    f"{type(pipe).__name__} combines the branches by itself. Call it without a negative prompt, or "
                    f"give {type(condition).__name__} to `FluxConditionedPipeline.from_pipe(pipe)`."
                )
