"""EliGen as a named pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from ...condition import FluxCondition, check_conditions
from ...inputs.checks import check_flag
from ...inputs.masks import RegionMask
from ...pipeline.components import extends_call, renames_errors
from ...pipeline.conditioned import FluxConditionedPipeline
from .condition import EntityRegions


class FluxEliGenPipeline(FluxConditionedPipeline):
    r"""FLUX.1 with entity-level control, EliGen ([paper](https://huggingface.co/papers/2501.01097)).

    Load the LoRA that belongs to it (`DiffSynth-Studio/Eligen` for FLUX.1-dev) with `load_lora_weights`. The
    components are those of [`~diffusers.FluxPipeline`].

    Example:
    ```py
    >>> import torch
    >>> from diffusers_flux_ext import FluxEliGenPipeline

    >>> pipe = FluxEliGenPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16)
    >>> pipe.load_lora_weights("DiffSynth-Studio/Eligen", weight_name="model_bf16.safetensors")
    >>> pipe.enable_model_cpu_offload()
    >>> image = pipe(
    ...     "a cat and a dog on a sofa",
    ...     entity_prompts=["a black cat", "a brown dog"],
    ...     entity_masks=[(0.05, 0.3, 0.45, 0.9), (0.55, 0.3, 0.95, 0.9)],
    ... ).images[0]
    ```
    """

    @extends_call(FluxConditionedPipeline)
    @renames_errors(EntityRegions, prompts="entity_prompts", masks="entity_masks")
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        entity_prompts: Sequence[str] | Sequence[Sequence[str]] | None = None,
        entity_masks: Sequence[RegionMask] | Sequence[Sequence[RegionMask]] | None = None,
        entities_on_negative: bool = False,
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Generate images with entities in regions.

        Args:
            args, kwargs: As for [`FluxConditionedPipeline.__call__`]; `prompt` is the global prompt.
            entity_prompts (`Sequence[str]` or `Sequence[Sequence[str]]`, *optional*):
                One prompt per entity, for all samples or nested per prompt of the batch. Without entities the
                pipeline is [`FluxConditionedPipeline`].
            entity_masks (`Sequence[RegionMask]` or `Sequence[Sequence[RegionMask]]`, *optional*):
                One region per entity: PIL images, arrays, tensors or boxes, see [`EntityRegions`].
            entities_on_negative (`bool`, *optional*, defaults to `False`):
                Whether the unconditional branch has the regions too, each with the negative prompt.
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`

        Raises:
            ValueError: if only one of `entity_prompts` and `entity_masks` is given, or if they do not match.
        """
        if (entity_prompts is None) != (entity_masks is None):
            given, missing = ("entity_prompts", "entity_masks")[:: 1 if entity_masks is None else -1]
            raise ValueError(f"`{given}` was given without `{missing}`. Give both, one mask per prompt, or neither.")
        check_flag("`entities_on_negative`", entities_on_negative)
        conditions = check_conditions(conditions)
        if entity_prompts is not None and entity_masks is not None:
            negative: Literal["own"] | None = "own" if entities_on_negative else None
            conditions.insert(0, EntityRegions(entity_prompts, entity_masks, negative))
        kwargs["conditions"] = conditions
        return super().__call__(*args, **kwargs)
