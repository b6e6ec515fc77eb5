"""The model that a run starts from."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel

from ...pipeline.conditioned import FluxConditionedPipeline
from ...tiny import named_model
from ..checkpointing import checkpoint_blocks
from ..config.model_section import ModelSection
from ..trained import widen_x_embedder


ENCODERS = ("text_encoder", "text_encoder_2", "vae", "image_encoder")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(section: ModelSection, **given: Any) -> Any:
    """Load a pipeline on the CPU, its modules frozen and without dropout.

    Args:
        section (`ModelSection`): Which one.
        given (`Any`): Components that are not loaded; `None` leaves one out.

    Returns:
        `FluxConditionedPipeline`

    Raises:
        ValueError: if the transformer cannot be widened as asked.
        OSError: if there is no such model.
    """
    path = named_model(section.path)
    options = {} if section.revision is None else {"revision": section.revision}
    pipe = FluxConditionedPipeline.from_pretrained(path, dtype=DTYPES[section.dtype], **options, **given)
    pipe.set_progress_bar_config(disable=True)
    for name in (*ENCODERS, "transformer"):
        module = getattr(pipe, name, None)
        if module is not None:
            module.requires_grad_(False).eval()
    if "transformer" in given:
        return pipe
    if section.widen is not None:
        widen_x_embedder(pipe.transformer, section.widen)
    if section.gradient_checkpointing:
        checkpoint_blocks(pipe.transformer, int(section.gradient_checkpointing), section.offload_activations)
    return pipe


def load_encoders(section: ModelSection, transformer: Any, device: torch.device) -> Any:
    """Load what encodes samples, beside a transformer that is there.

    Args:
        section (`ModelSection`): Which model.
        transformer (`FluxTransformer2DModel`): Its transformer.
        device (`torch.device`): Where the encoders are put.

    Returns:
        `FluxConditionedPipeline`
    """
    pipe = load_pipeline(section, transformer=transformer)
    encoders_to(pipe, device)
    return pipe


def choose_device(name: str) -> torch.device:
    """Return a device by name; `"auto"` is the accelerator if there is one.

    Args:
        name (`str`): Such as `"cuda:1"`.

    Returns:
        `torch.device`

    Raises:
        ValueError: if it is not a device of this machine.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`model.device` is {name!r}, which this machine does not have: {error}") from error
    return device


def encoders_to(pipe: Any, device: torch.device) -> None:
    """Move what encodes samples to a device, and leave the transformer where it is."""
    for name in ENCODERS:
        module = getattr(pipe, name, None)
        if module is not None:
            module.to(device)


def drop_encoders(pipe: Any) -> None:
    """Forget the text encoders and the vision model, which cached samples need no longer; the VAE stays."""
    for name in ("text_encoder", "text_encoder_2", "image_encoder"):
        if getattr(pipe, name, None) is not None:
            pipe.register_modules(**{name: None})
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def empty_transformer(section: ModelSection) -> Any:
    """Return the transformer without weights, on the meta device.

    Args:
        section (`ModelSection`): The model.

    Returns:
        `FluxTransformer2DModel`
    """
    path = named_model(section.path)
    options = {} if section.revision is None else {"revision": section.revision}
    config = FluxTransformer2DModel.load_config(path, subfolder="transformer", **options)
    with init_empty_weights(include_buffers=True), torch.device("meta"):
        return FluxTransformer2DModel.from_config(config)
