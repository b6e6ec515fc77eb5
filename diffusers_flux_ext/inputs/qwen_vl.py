"""Qwen2.5-VL in front of a FLUX transformer: a processor without torchvision, the inputs, and the hidden states.

The language model is transformers' own `Qwen2_5_VLForConditionalGeneration`, which may be quantised or offloaded.
Step1X-Edit and Nexus-Gen share this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from .._devices import execution_device
from .checks import shown
from .vision import to_pil


try:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as ImageProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
except ImportError:
    # Before transformers split its processors by backend, the plain class was the one for PIL images.
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as ImageProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize


IMAGE_TOKEN = "<|image_pad|>"
IMAGE_SPAN = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
"""How a chat text says where an image stands; [`qwen_vl_inputs`] repeats the token in the middle."""

# Arguments of the model that some versions of transformers lack.
_NOT_IN_ALL = ("mm_token_type_ids", "logits_to_keep")

SYSTEM = "You are a helpful assistant."


class QwenVLProcessor:
    """A Qwen2.5-VL image processor and tokenizer, saved and loaded as one component of a pipeline.

    transformers' own `Qwen2_5_VLProcessor` also wants a video processor, which needs torchvision. Its
    folders are read here, and it can be used instead of this class where it can be built.

    Args:
        image_processor (`Qwen2VLImageProcessor`): The one that works on PIL images.
        tokenizer (`Qwen2Tokenizer`): The tokenizer.
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> QwenVLProcessor:
        """Load from a folder or repository of Qwen2.5-VL or of a saved processor.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                With `preprocessor_config.json` and the tokenizer's files, for example `"Qwen/Qwen2.5-VL-7B-Instruct"`.
            kwargs: Passed on to transformers, for example `subfolder`, `revision` or `cache_dir`.

        Returns:
            `QwenVLProcessor`
        """
        return cls(
            ImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs),
        )

    def save_pretrained(self, save_directory: Any) -> None:
        """Save both parts in one folder, in transformers' layout."""
        self.image_processor.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)


def chat_text(content: str, system: str = SYSTEM, answer: str | None = None) -> str:
    """Return the text of a chat with one question, as Qwen2.5-VL's chat template writes it.

    Args:
        content (`str`): What the user says; [`IMAGE_SPAN`] marks where images go.
        system (`str`, *optional*): The system prompt.
        answer (`str`, *optional*): The whole answer; without it the text ends where the answer begins.

    Returns:
        `str`
    """
    turns = {"system": system, "user": content} | ({} if answer is None else {"assistant": answer})
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns.items())
    return text if answer is not None else text + "<|im_start|>assistant\n"


def check_processor(what: str, processor: Any) -> None:
    """Raise a `TypeError` unless a processor, where one is given, has an image processor and a tokenizer."""
    if processor is not None and not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise TypeError(f"{what} must be a processor of Qwen2.5-VL, `QwenVLProcessor`, got {shown(processor)}.")


def tokenize(processor: Any, text: str) -> list[int]:
    """Tokenize a chat text without adding special tokens."""
    return list(processor.tokenizer(text, add_special_tokens=False).input_ids)


def fit_image(
    image: Any,
    processor: Any,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    what: str = "An image",
) -> Image.Image:
    """Resize an image as the vision model sees it, keeping the aspect ratio as far as whole tokens allow.

    Args:
        image: PIL image, array or tensor, as [`to_pil`] takes it; of any mode, an alpha channel is dropped.
        processor (`QwenVLProcessor`): Gives the size of a token, the resampling and the bounds that are not given.
        min_pixels (`int`, *optional*): Least number of pixels.
        max_pixels (`int`, *optional*): Greatest number of pixels.
        what (`str`): What the image is, for errors.

    Returns:
        `PIL.Image.Image` in RGB.

    Raises:
        ValueError: if one side is more than 200 times as long as the other, which transformers refuses.
    """
    image, settings = to_pil(image, what), processor.image_processor
    size = _pixel_bounds(settings)
    longer, shorter = max(image.size), min(image.size)
    if longer > 200 * shorter:
        raise ValueError(
            f"{what} has {image.width} x {image.height} pixels (width x height), but Qwen2.5-VL takes at most "
            f"200 times the shorter side as the longer one. Crop it, or pad it."
        )
    height, width = smart_resize(
        image.height,
        image.width,
        factor=settings.patch_size * settings.merge_size,
        min_pixels=size[0] if min_pixels is None else min_pixels,
        max_pixels=size[1] if max_pixels is None else max_pixels,
    )
    return image.resize((width, height), settings.resample)


def _pixel_bounds(image_processor: Any) -> tuple[int, int]:
    # Older processors hold the bounds under names of their own, newer ones in the size.
    names = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    least, greatest = (getattr(image_processor, old, None) or image_processor.size[new] for old, new in names)
    return least, greatest


def qwen_vl_inputs(
    processor: Any,
    text: str | Sequence[int],
    images: Sequence[Any] = (),
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return inputs of `Qwen2_5_VLForConditionalGeneration` for one chat.

    Args:
        processor (`QwenVLProcessor`): The processor; transformers' own works, too.
        text (`str` or `Sequence[int]`): A chat text, or its token ids, with one `<|image_pad|>` for each image.
        images (`Sequence`): PIL images, arrays or tensors, of any size and mode, in the order of the text.
        min_pixels (`int`, *optional*): Least size in pixels that an image is resized to; the processor's by default.
        max_pixels (`int`, *optional*): Greatest size in pixels; the processor's by default.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `mm_token_type_ids`, each `(1, length)` (the last
        is 1 for the tokens of images), and, with images, `pixel_values` `(patches, channels)` in float32 and
        `image_grid_thw` `(images, 3)`, the patches along time, height and width. What the installed transformers
        does not know is dropped by [`known_inputs`].

    Raises:
        ValueError: if the numbers of image tokens and images differ, or an image is too long.
    """
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    given = tokenize(processor, text) if isinstance(text, str) else list(text)
    if given.count(image_id) != len(images):
        raise ValueError(
            f"The text has {IMAGE_TOKEN!r} {given.count(image_id)} times, got {len(images)} images. Put one for each "
            f"image, and remove the token from what users write."
        )
    inputs: dict[str, torch.Tensor] = {}
    repeats: list[int] = []
    if images:
        seen = [fit_image(image, processor, min_pixels, max_pixels) for image in images]
        settings = processor.image_processor
        batch = settings(images=seen, do_resize=False, input_data_format="channels_last", return_tensors="pt")
        inputs = {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}
        repeats = (batch["image_grid_thw"].prod(-1) // settings.merge_size**2).tolist()
    counts = iter(repeats)
    ids = torch.tensor([[each for token in given for each in [token] * (next(counts) if token == image_id else 1)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image_id).long(),
        **inputs,
    }


def known_inputs(inputs: Mapping[str, Any], model_class: Any = Qwen2_5_VLForConditionalGeneration) -> dict[str, Any]:
    """Return the inputs that the installed transformers knows.

    Today's model computes its three-dimensional positions from `mm_token_type_ids`, and without it silently uses those
    of plain text (https://github.com/huggingface/diffusers/issues/14194); transformers 5.0 had no such argument.
    """
    known = inspect.signature(model_class.forward).parameters
    return {name: value for name, value in inputs.items() if name in known or name not in _NOT_IN_ALL}


def hide_tokens(
    mllm: torch.nn.Module, inputs: Mapping[str, torch.Tensor], hidden: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Hide some tokens from the model: they are not counted in positions, and are at position 1 themselves.

    transformers gave hidden tokens this position up to 5.0 at least, and gives them 0 in 5.23. Models that were
    trained with hidden tokens saw the former, so it is set here.

    Args:
        mllm (`Qwen2_5_VLForConditionalGeneration`): The model, whose transformers computes the other positions.
        inputs (`Mapping[str, torch.Tensor]`): From [`qwen_vl_inputs`], with at least one image.
        hidden (`torch.Tensor` of shape `(1, length)`): Which tokens; boolean.

    Returns:
        `dict[str, torch.Tensor]`: the inputs with another `attention_mask`, and `position_ids` if a token is hidden.
    """
    masked = {**inputs, "attention_mask": (~hidden).long()}
    if not hidden.any():
        return masked
    owner: Any = mllm.model if hasattr(mllm.model, "get_rope_index") else mllm
    known = inspect.signature(owner.get_rope_index).parameters
    positions, _ = owner.get_rope_index(**{name: value for name, value in masked.items() if name in known})
    return {**masked, "position_ids": positions.masked_fill(hidden[None], 1)}


@torch.no_grad()
def last_hidden_states(mllm: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Run the language model and return its hidden states after the last layer and norm.

    The model itself is called, not one of its parts, so that offloading hooks run; only the last logits are computed.

    Args:
        mllm (`Qwen2_5_VLForConditionalGeneration`): The model, on any device, quantised or offloaded.
        inputs (`Mapping[str, torch.Tensor]`): From [`qwen_vl_inputs`].

    Returns:
        `torch.Tensor` of shape `(1, length, hidden_size)`
    """
    device = execution_device(mllm)
    moved = {name: value.to(device) for name, value in inputs.items()}
    options = {"use_cache": False, "output_hidden_states": True, "logits_to_keep": 1, "return_dict": True}
    return mllm(**known_inputs({**moved, **options})).hidden_states[-1]
