"""What conditions with a ControlNet share: their arguments and the checks of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from diffusers.utils import logging

from ...attention.parallel import check_not_split
from ...caches.rules import check_cache_allows_residuals
from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...inputs.checks import check_choice
from ...inputs.masks import RegionMask, list_regions, mask_to_pixels
from ...inputs.numbers import check_window, is_active, read_numbers, warn_without_step


logger = logging.get_logger(__name__)

Negative: TypeAlias = Literal["shared", "own"] | None
"""What the unconditional branch gets: the conditional branch's residuals, residuals of its own, or none."""


class ControlNetCondition(FluxCondition):
    """What conditions with a ControlNet share; a subclass is a dataclass with the fields named here."""

    controlnet: Any
    scale: float | Sequence[float]
    start: float
    end: float
    negative: Negative

    def reuse(self, step: DenoisingStep) -> Hashable | None:
        """Residuals are those of one step; both branches get the conditional branch's where they are shared."""
        return step.index if self.negative == "shared" else None

    def demand(self, prompt_tokens: int) -> Demand:
        """Residuals cost no tokens."""
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
                f"`controlnet` of {name} is a {type(self.controlnet).__name__}, which has no {missing}; a "
                f"`FluxControlNetModel` was expected. Several ControlNets are several conditions."
            )
        check_window(name, self.start, self.end)
        check_choice(f"`negative` of {name}", self.negative, ("shared", "own", None))
        double, single = len(self.controlnet.controlnet_blocks), len(self.controlnet.controlnet_single_blocks)
        per = f"for each of {double} double and {single} single blocks, the double blocks first"
        read_numbers(f"`scale` of {name}", self.scale, double + single, per)

    def check_fits_pipeline(self, pipe: Encoders, context: int | None = None) -> None:
        """Raise a `ValueError` if the ControlNet was made for another size, or if the transformer takes no residuals.

        Args:
            pipe (`Encoders`): Gives the transformer.
            context (`int`, *optional*): Width of what stands in for the text; the transformer's text by default.
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
    """How many channels besides the picture's latents an inpainting ControlNet takes; 0 for any other."""
    return controlnet.controlnet_x_embedder.in_features - controlnet.config.in_channels


def region_weights(what: str, region: RegionMask | Sequence[RegionMask], canvas: Canvas) -> torch.Tensor:
    """The region of a condition as factors of its residuals.

    Args:
        what (`str`): What it is, for errors and for the warning about a region without a token.
        region (`RegionMask` or a list of them): One for all prompts, or one per prompt.
        canvas (`Canvas`): The canvas.

    Returns:
        `torch.Tensor` of shape `(1 or num_samples, num_tokens, 1)`: 1 inside, 0 outside, and the covered fraction of a
        token on the border, so that regions that share a picture between them sum to 1 everywhere.
    """
    pixels = [mask_to_pixels(mask, canvas, what).float()[None] for mask in list_regions(region, what)]
    masks = [torch.nn.functional.avg_pool2d(mask, canvas.token_size).flatten() for mask in pixels]
    for index, inside in enumerate(masks):
        if not inside.any():
            logger.warning(f"Region {index} of {what} covers no token, so it changes nothing there.")
    return canvas.per_sample(torch.stack(masks), what)[..., None].to(canvas.device, canvas.dtype)
