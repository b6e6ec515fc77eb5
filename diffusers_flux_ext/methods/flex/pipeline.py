"""Flex.2 as a named pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from ...condition import FluxCondition, check_conditions
from ...inputs.images import ImageInputs
from ...inputs.masks import RegionMask
from ...pipeline.components import extends_call, renames_errors
from ...pipeline.conditioned import FluxConditionedPipeline
from .condition import FlexControl


class FluxFlexPipeline(FluxConditionedPipeline):
    r"""Flex.2: text to image, inpainting and control by one model.

    See the [model card](https://huggingface.co/ostris/Flex.2-preview). The components are those of
    [`~diffusers.FluxPipeline`], with a transformer of 196 input channels.
    """

    @extends_call(FluxConditionedPipeline)
    @renames_errors(FlexControl)
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        inpaint_image: ImageInputs | None = None,
        inpaint_mask: RegionMask | Sequence[RegionMask] | None = None,
        control_image: ImageInputs | None = None,
        control_strength: float = 0.5,
        control_stop: float = 0.5,
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Generate images.

        Args:
            args, kwargs: As for [`FluxConditionedPipeline.__call__`].
            inpaint_image (*optional*): The image to redraw a part of, see [`FlexControl`].
            inpaint_mask (`RegionMask` or a list of them, *optional*): White is redrawn.
            control_image (*optional*): Lines, depth or a pose.
            control_strength (`float`, *optional*, defaults to 0.5): Strength of the control image.
            control_stop (`float`, *optional*, defaults to 0.5): End of the control, as a fraction of the steps.
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`

        Raises:
            ValueError: if only one of `inpaint_image` and `inpaint_mask` is given, or a number is out of range.
        """
        flex = FlexControl(inpaint_image, inpaint_mask, control_image, control_strength, control_stop)
        kwargs["conditions"] = [flex, *check_conditions(conditions)]
        return super().__call__(*args, **kwargs)
