"""Drawing a training sample by the ordinary pipeline."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ..condition import FluxCondition
from ..pipeline.conditioned import FluxConditionedPipeline
from .bare import with_encoded
from .batch import TrainingSample


def drawing_pipeline(transformer: Any, vae: Any, scheduler: Any) -> FluxConditionedPipeline:
    """Return a pipeline that draws from encoded prompts.

    Args:
        transformer (`FluxTransformer2DModel`): The transformer, shared with whatever else uses it.
        vae (`AutoencoderKL`): Decodes.
        scheduler (`FlowMatchEulerDiscreteScheduler`): Gives the noise levels; the pipeline has a copy of its own.

    Returns:
        `FluxConditionedPipeline`
    """
    pipe = FluxConditionedPipeline(
        scheduler=copy.deepcopy(scheduler), vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_sample(
    pipe: FluxConditionedPipeline,
    conditions: Sequence[FluxCondition],
    sample: TrainingSample,
    text: str,
    **arguments: Any,
) -> Any:
    """Draw what a sample asks for: its caption, its size and its conditions.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline.
        conditions (`Sequence[FluxCondition]`): The conditions, which may be bare.
        sample (`TrainingSample`): The sample; its own latents are not used.
        text (`str`): Which of its captions.
        arguments (`Any`): Further arguments of the call.

    Returns:
        `Any`: the images of the call, one.
    """
    device: Any = pipe.device
    hidden_states, pooled = sample.prompts[text]
    drawn: Any = pipe(
        prompt_embeds=hidden_states.to(device, pipe.transformer.dtype),
        pooled_prompt_embeds=pooled.to(device, pipe.transformer.dtype),
        height=sample.height,
        width=sample.width,
        max_sequence_length=min(512, hidden_states.shape[1]),
        # What a sample does not have encodes nothing.
        conditions=[with_encoded(*each) for each in zip(conditions, sample.conditions) if each[1]],
        **arguments,
    )
    return drawn.images
