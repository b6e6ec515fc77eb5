"""Shared parts of conditions with a ControlNet: their fields, and running it for one step."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
from diffusers.utils import logging

from ...attention.parallel import check_not_split
from ...caches.rules import check_cache_allows_residuals
from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep, PromptEmbeds
from ...inputs.checks import check_choice
from ...inputs.masks import RegionMask, list_regions, mask_to_pixels
from ...inputs.numbers import check_window, is_active, read_numbers, warn_without_step
from ...sequence import Contribution


logger = logging.get_logger(__name__)

Negative: TypeAlias = Literal["same", "own"] | None
"""What the unconditional branch gets: the conditional branch's residuals, residuals of its own, or none."""

FORMER_NEGATIVE = {"negative": {"shared": "same"}}
"""Values of `negative` that have another name now."""


class ControlNetCondition(FluxCondition):
    """Base of conditions with a ControlNet; a subclass is a dataclass with the fields named here."""

    controlnet: Any
    scale: float | Sequence[float]
    start: float
    end: float
    negative: Negative

    def reuse(self, step: DenoisingStep) -> Hashable | None:
        """Return the key of one step; both branches share it where the residuals are shared."""
        return step.index if self.negative == "same" else None

    def demand(self, prompt_tokens: int) -> Demand:
        """Residuals add no tokens."""
        return Demand()

    def is_silent(self, step: DenoisingStep) -> bool:
        """Whether there is nothing to add at a step; the window follows diffusers' ControlNet pipelines."""
        warn_without_step(type(self).__name__, step, self.start, self.end)
        return (
            not is_active(step, self.start, self.end)
            or (not isinstance(self.scale, Sequence) and self.scale == 0)
            or (step.branch == "uncond" and self.negative is None)
        )

    def check_residual_fields(self) -> None:
        """Raise an error unless the fields named above have the right types and ranges."""
        name = type(self).__name__
        missing = [
            part for part in ("controlnet_x_embedder", "controlnet_blocks") if not hasattr(self.controlnet, part)
        ]
        if missing:
            raise TypeError(
                f"`controlnet` of {name} is a {type(self.controlnet).__name__} without {missing}; expected a "
                f"`FluxControlNetModel`. Several ControlNets are several conditions."
            )
        check_window(name, self.start, self.end)
        check_choice(f"`negative` of {name}", self.negative, ("same", "own", None))
        double, single = len(self.controlnet.controlnet_blocks), len(self.controlnet.controlnet_single_blocks)
        per = f"for each of {double} double and {single} single blocks, the double blocks first"
        read_numbers(f"`scale` of {name}", self.scale, double + single, per)

    def check_fits_pipeline(self, pipe: Encoders, context: int | None = None) -> None:
        """Raise a `ValueError` if the ControlNet was made for another size, or if the transformer takes no residuals.

        Args:
            pipe (`Encoders`): Gives the transformer.
            context (`int`, *optional*): Width of what replaces the text; the transformer's text by default.
        """
        check_not_split(pipe.transformer, f"the residuals of {type(self).__name__}")
        check_cache_allows_residuals(pipe.transformer)
        base, own = pipe.transformer.config, self.controlnet.config
        wanted = {
            "in_channels": (own.in_channels, base.out_channels or base.in_channels),
            "inner_dim": (self.controlnet.inner_dim, pipe.transformer.inner_dim),
            "joint_attention_dim": (own.joint_attention_dim, context or base.joint_attention_dim),
            "pooled_projection_dim": (own.pooled_projection_dim, base.pooled_projection_dim),
        }
        wrong = {name: sizes for name, sizes in wanted.items() if sizes[0] != sizes[1]}
        if wrong:
            listed = ", ".join(f"{name} {ours} instead of {theirs}" for name, (ours, theirs) in wrong.items())
            raise ValueError(
                f"The ControlNet of {type(self).__name__} was made for another transformer: it has {listed}. Use one "
                f"that was trained for this base model."
            )


def mask_channels(controlnet: Any) -> int:
    """Return the number of channels that an inpainting ControlNet takes beside the latents; 0 for any other."""
    return controlnet.controlnet_x_embedder.in_features - controlnet.config.in_channels


def region_weights(what: str, region: RegionMask | Sequence[RegionMask], canvas: Canvas) -> torch.Tensor:
    """Return the region of a condition as factors of its residuals.

    Args:
        what (`str`): What it is, for errors and for the warning about a region without a token.
        region (`RegionMask` or a list of them): One for all prompts, or one per prompt.
        canvas (`Canvas`): The canvas.

    Returns:
        `torch.Tensor` of shape `(1 or num_samples, num_tokens, 1)`: 1 inside, 0 outside, and the covered fraction of a
        token on the border, so that regions that share an image between them sum to 1 everywhere.
    """
    pixels = [mask_to_pixels(mask, canvas, what).float()[None] for mask in list_regions(region, what)]
    masks = [torch.nn.functional.avg_pool2d(mask, canvas.token_size).flatten() for mask in pixels]
    for index, inside in enumerate(masks):
        if not inside.any():
            logger.warning(f"Region {index} of {what} covers no token, so it changes nothing there.")
    return canvas.per_sample(torch.stack(masks), what)[..., None].to(canvas.device, canvas.dtype)


def residual_contribution(
    controlnet: Any,
    step: DenoisingStep,
    control: torch.Tensor,
    *,
    context: PromptEmbeds,
    guidance: torch.Tensor,
    scale: float | Sequence[float],
    mode: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> Contribution:
    """Run a ControlNet for one step.

    Args:
        controlnet (`FluxControlNetModel`): The ControlNet.
        step (`DenoisingStep`): The step.
        control (`torch.Tensor` of shape `(1 or num_samples, num_tokens, C)`, or pixels for one with a hint block):
            The encoded control image.
        context (`PromptEmbeds`): What replaces the text; padding that it hides is left out.
        guidance (`torch.Tensor` of shape `(1,)` or `(num_samples,)`):
            Used only if the ControlNet takes an embedded guidance.
        scale (`float` or `Sequence[float]`): Factor of all residuals, or one per block.
        mode (`torch.Tensor` of shape `(1,)` or `(num_samples,)`, *optional*): Number of a union ControlNet's mode.
        weights (`torch.Tensor` of shape `(1 or num_samples, num_tokens, 1)`, *optional*): Factors per token.

    Returns:
        `Contribution`: the residuals.
    """
    samples = step.latents.shape[0]
    several = isinstance(scale, Sequence)
    inputs = {
        "hidden_states": step.latents,
        "controlnet_cond": control.expand(samples, *control.shape[1:]),
        "controlnet_mode": None if mode is None else mode.expand(samples)[:, None],
        "timestep": step.timestep,
        "guidance": guidance.expand(samples) if controlnet.config.guidance_embeds else None,
    }
    outputs = []
    for part, text in _without_padding(context, samples):
        outputs.append(
            controlnet(
                **{name: value if value is None else value[part] for name, value in inputs.items()},
                conditioning_scale=1.0 if several else scale,
                pooled_projections=text.pooled,
                encoder_hidden_states=text.hidden_states,
                txt_ids=text.ids,
                img_ids=step.latent_ids,
                return_dict=False,
            )
        )
    double, single = (_join([list(side or ()) for side in sides]) for sides in zip(*outputs))
    if several:
        factors = list(scale)  # type: ignore[arg-type]
        double = [residual * factor for residual, factor in zip(double, factors)]
        single = [residual * factor for residual, factor in zip(single, factors[len(double) :])]
    if weights is not None:
        double, single = ([residual * weights for residual in residuals] for residuals in (double, single))
    return Contribution(
        block_residuals=double,
        single_block_residuals=single,
        residuals_repeat=controlnet.input_hint_block is not None,
    )


def _without_padding(context: PromptEmbeds, samples: int) -> Iterator[tuple[slice, PromptEmbeds]]:
    """Return the text that is seen, for each run of samples that see the same tokens.

    A ControlNet takes no attention mask; without the padding it needs none.
    """
    if context.mask is None:
        yield slice(None), context
        return
    rows, tokens = context.mask.expand(samples, -1), context.hidden_states.expand(samples, -1, -1)
    pooled, start = context.pooled.expand(samples, -1), 0
    for stop in range(1, samples + 1):
        if stop == samples or not torch.equal(rows[stop], rows[start]):
            part = slice(start, stop)
            kept = rows[start].nonzero().flatten().to(tokens.device)
            yield part, PromptEmbeds(tokens[part].index_select(1, kept), pooled[part], context.ids[kept])
            start = stop


def _join(parts: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    return parts[0] if len(parts) == 1 else [torch.cat(residuals) for residuals in zip(*parts)]
