"""AttriCtrl as a named pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from ...condition import FluxCondition, check_conditions
from ...pipeline.components import extends_call, extends_init, renames_errors
from ...pipeline.conditioned import FluxConditionedPipeline
from .condition import AttributeInput, AttributeValues
from .encoder import AttributeValueEncoder


class FluxAttributeControlPipeline(FluxConditionedPipeline):
    r"""FLUX.1 with attributes of the image controlled by numbers.

    This is AttriCtrl ([model](https://modelscope.cn/models/DiffSynth-Studio/AttriCtrl-FLUX.1-Dev)). The component
    `value_encoder` ([`AttributeValueEncoder`]) joins those of [`~diffusers.FluxPipeline`].

    Example:
    ```py
    >>> import torch
    >>> from diffusers_flux_ext import AttributeValueEncoder, FluxAttributeControlPipeline

    >>> encoder = AttributeValueEncoder.from_single_file("models/brightness.safetensors", torch_dtype=torch.bfloat16)
    >>> pipe = FluxAttributeControlPipeline.from_pretrained(
    ...     "black-forest-labs/FLUX.1-dev", value_encoder=encoder, dtype=torch.bfloat16
    ... )
    >>> pipe.enable_model_cpu_offload()
    >>> image = pipe("a cat on the beach", attribute_values={"brightness": 0.2}).images[0]
    ```
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->value_encoder->transformer->vae"
    _optional_components = [*FluxConditionedPipeline._optional_components, "value_encoder"]

    @extends_init(FluxConditionedPipeline)
    def __init__(
        self,
        *args: Any,
        value_encoder: AttributeValueEncoder = None,  # type: ignore[assignment]
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_modules(value_encoder=value_encoder)

    @extends_call(FluxConditionedPipeline)
    @renames_errors(AttributeValues, values="attribute_values", negative="negative_attribute_values")
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        attribute_values: AttributeInput | None = None,
        negative_attribute_values: Literal["same"] | AttributeInput | None = "same",
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Generate images with given attributes.

        Args:
            args, kwargs: As for [`FluxConditionedPipeline.__call__`].
            attribute_values (`Mapping[str, float | Sequence[float] | None]`, *optional*):
                Values in [0, 1] by attribute, or one per prompt; `None` skips an attribute. Without values the
                pipeline is [`FluxConditionedPipeline`].
            negative_attribute_values (`"same"`, a mapping, or `None`, *optional*, defaults to `"same"`):
                What the unconditional branch gets, see [`AttributeValues`].
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`

        Raises:
            ValueError: if there is no `value_encoder`, an attribute is unknown or a value out of range.
        """
        conditions = check_conditions(conditions)
        if attribute_values is not None:
            if self.value_encoder is None:
                raise ValueError(
                    "The pipeline has no `value_encoder`, which `attribute_values` need. Pass one to "
                    "`from_pretrained` or `from_pipe`, for example "
                    "`AttributeValueEncoder.from_single_file('brightness.safetensors')`."
                )
            conditions.insert(0, AttributeValues(self.value_encoder, attribute_values, negative_attribute_values))
        elif not (negative_attribute_values is None or isinstance(negative_attribute_values, str)):
            raise ValueError("`negative_attribute_values` was given without `attribute_values`. Give both.")
        kwargs["conditions"] = conditions
        return super().__call__(*args, **kwargs)
