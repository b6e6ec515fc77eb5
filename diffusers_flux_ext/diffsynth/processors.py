"""Tokenizers and processors that belong to the models of a pipeline, and the default finder of faces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..inputs.qwen_vl import QwenVLProcessor
from ..methods.infinite_you.insightface import InsightFaceEncoder
from .model_config import ModelConfig


INSIGHTFACE = "models/ByteDance/InfiniteYou/supports/insightface"
ARCFACE = "models/ByteDance/InfiniteYou/supports/recognition_arcface_ir_se50.pth"
"""Where the reference looks for the detector's models, and where facexlib's recognition network is expected."""

TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def adopt_token_ids(model: Any, processor: QwenVLProcessor) -> None:
    """Let a language model that was loaded without its config know the tokens of images as its tokenizer has them.

    Args:
        model (`Qwen2_5_VLForConditionalGeneration`): The model, whose config is set.
        processor ([`QwenVLProcessor`]): Its processor.
    """
    for name, token in TOKENS.items():
        number = processor.tokenizer.convert_tokens_to_ids(token)
        if number is not None:
            setattr(model.config, name, number)


def tokenizer_of(kind: Any, config: ModelConfig | None, encoder: Any) -> Any:
    """Load the tokenizer of a text encoder; `None` without a config, or without the encoder."""
    # Without the encoder there is nothing to tokenize for, so nothing is downloaded.
    return None if config is None or encoder is None else load_folder(kind, config)


def load_folder(kind: Any, config: ModelConfig | None) -> Any:
    """Load a tokenizer or a processor from the folder that a config names; raise a `ValueError` without one."""
    if config is None:
        raise ValueError(f"A processor is needed, but its config is None. Give the folder of a {kind.__name__}.")
    # A copy, since the config may be the default of an argument.
    config = replace(config)
    config.download_if_necessary()
    return kind.from_pretrained(config.path)


def default_face_encoder() -> InsightFaceEncoder:
    """Make the finder of faces that InfiniteYou was published with, from where the reference looks for it."""
    return InsightFaceEncoder(ARCFACE, root=INSIGHTFACE)
