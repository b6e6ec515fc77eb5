"""LoRA-Encoder as a named pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from ...condition import FluxCondition, check_conditions
from ...lora.files import LoRASource
from ...pipeline.components import extends_call, extends_init, renames_errors
from ...pipeline.conditioned import FluxConditionedPipeline
from .condition import LoRAEmbedding
from .model import FluxLoRAEncoder


class FluxLoRAEncoderPipeline(FluxConditionedPipeline):
    r"""FLUX.1 with LoRAs as a part of the prompt.

    This is LoRA-Encoder ([model](https://modelscope.cn/models/DiffSynth-Studio/LoRA-Encoder-FLUX.1-Dev)). The
    component `lora_encoder` ([`FluxLoRAEncoder`]) joins those of [`~diffusers.FluxPipeline`]. Embedding a LoRA does
    not load it; usually it is also loaded with `load_lora_weights`.

    Example:
    ```py
    >>> import torch
    >>> from diffusers_flux_ext import FluxLoRAEncoder, FluxLoRAEncoderPipeline

    >>> encoder = FluxLoRAEncoder.from_single_file("LoRA-Encoder/model.safetensors", torch_dtype=torch.bfloat16)
    >>> pipe = FluxLoRAEncoderPipeline.from_pretrained(
    ...     "black-forest-labs/FLUX.1-dev", lora_encoder=encoder, dtype=torch.bfloat16
    ... )
    >>> pipe.load_lora_weights("style.safetensors")
    >>> pipe.enable_model_cpu_offload()
    >>> image = pipe("", lora_inputs="style.safetensors").images[0]
    ```
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->lora_encoder->transformer->vae"
    _optional_components = [*FluxConditionedPipeline._optional_components, "lora_encoder"]

    @extends_init(FluxConditionedPipeline)
    def __init__(
        self,
        *args: Any,
        lora_encoder: FluxLoRAEncoder = None,  # type: ignore[assignment]
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_modules(lora_encoder=lora_encoder)

    @extends_call(FluxConditionedPipeline)
    @renames_errors(LoRAEmbedding, loras="lora_inputs", scale="lora_embedding_scale")
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        lora_inputs: LoRASource | Sequence[LoRASource] | Sequence[Sequence[LoRASource]] | None = None,
        lora_embedding_scale: float | Sequence[float] = 1.0,
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Generate images with LoRAs as a part of the prompt.

        Args:
            args, kwargs: As for [`FluxConditionedPipeline.__call__`].
            lora_inputs (a LoRA, a list of them, or one such list per prompt, *optional*):
                Files, folders or state dicts in any format, see [`LoRAEmbedding`]. Without any the pipeline is
                [`FluxConditionedPipeline`].
            lora_embedding_scale (`float` or `Sequence[float]`, *optional*, defaults to 1.0):
                Factor of the tokens, or one per LoRA; 0 leaves the LoRA out.
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`

        Raises:
            ValueError: if there is no `lora_encoder`, or a LoRA cannot be read.
        """
        conditions = check_conditions(conditions)
        if lora_inputs is not None:
            if self.lora_encoder is None:
                raise ValueError(
                    "The pipeline has no `lora_encoder`, which `lora_inputs` need. Pass one to `from_pretrained` or "
                    "`from_pipe`: `FluxLoRAEncoder.from_single_file('model.safetensors')`."
                )
            conditions.insert(0, LoRAEmbedding(self.lora_encoder, lora_inputs, lora_embedding_scale))
        kwargs["conditions"] = conditions
        return super().__call__(*args, **kwargs)
