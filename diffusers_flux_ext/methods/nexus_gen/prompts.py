"""The chats for Nexus-Gen's language model, and the embeddings that it predicts for an image to be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..._devices import execution_device
from ...inputs.checks import check_choice, shown
from ...inputs.numbers import check_embeds as check_values
from ...inputs.numbers import read_count
from ...inputs.qwen_vl import IMAGE_SPAN, chat_text, fit_image, known_inputs, qwen_vl_inputs


if TYPE_CHECKING:
    from ...canvas import Canvas

Language = Literal["en", "zh"]
PLACEHOLDER = "<image>"
"""Where the given image stands in an instruction; before the instruction where it has none."""

GENERATION = {
    "en": "Generate an image according to the following description: {}",
    "zh": "根据以下描述生成一张图像：{}",
}
# The model was trained to begin its answers like this, in either language.
GENERATED, EDITED = "Here is an image based on the description: ", "Here is the image: "
MIN_PIXELS = 4 * 28 * 28
MAX_PIXELS = 262640
"""Published maximum number of pixels of a given image."""


def check_options(language: str = "en", max_pixels: int = MAX_PIXELS) -> None:
    """Raise a `ValueError` for a language without a sentence, or fewer pixels than an image has."""
    check_choice("`language` of NexusGenEmbedding", language, tuple(GENERATION))
    # At least 56 x 56 pixels, and no more than a side of the largest image that Pillow opens without a warning.
    read_count("`max_pixels` of NexusGenEmbedding", max_pixels, MIN_PIXELS, 89_478_485)


def check_language_model(mllm: Any) -> None:
    """Raise a `TypeError` for a language model that predicts no images, such as plain Qwen2.5-VL."""
    if not hasattr(mllm, "blank_image"):
        raise TypeError(
            f"`mllm` is a {type(mllm).__name__}; expected a `NexusGenModel`, which has the weights that predict "
            f"images: `NexusGenModel.from_pretrained(...)`."
        )


def chat_for(prompt: str, has_image: bool, language: Language = "en") -> str:
    """Return the chat whose last image is the one to be drawn.

    Args:
        prompt (`str`): A description, or an instruction for a given image, in English or Chinese.
        has_image (`bool`): Whether there is a given image.
        language (`"en"` or `"zh"`, *optional*): Of the sentence around a description; instructions have none.

    Returns:
        `str`
    """
    if not has_image:
        return chat_text(GENERATION[language].format(prompt), answer=GENERATED + IMAGE_SPAN)
    instruction = prompt if PLACEHOLDER in prompt else f"{PLACEHOLDER} {prompt}"
    return chat_text(instruction.replace(PLACEHOLDER, IMAGE_SPAN), answer=EDITED + IMAGE_SPAN)


def embed_prompts(
    mllm: Any,
    processor: Any,
    prompts: Sequence[str],
    images: Sequence[Any] | None = None,
    language: Language = "en",
    max_pixels: int = MAX_PIXELS,
) -> dict[str, torch.Tensor]:
    """Predict embeddings of images to be drawn, with one forward pass of the language model each.

    Args:
        mllm (`NexusGenModel`): The language model, on any device, quantised or offloaded.
        processor (`QwenVLProcessor`): Its processor.
        prompts (`Sequence[str]`): Descriptions, or instructions where there are images.
        images (`Sequence`, *optional*): Given images, one for all prompts or one each.
        language (`"en"` or `"zh"`, *optional*): See [`chat_for`].
        max_pixels (`int`, defaults to 262640): Maximum number of pixels of a given image, which is reduced to it.

    Returns:
        `dict[str, torch.Tensor]`: `"image_embeds"` `(prompts, 81, hidden_size)`; and for given images
        `"reference_embeds"` `(prompts, length, hidden_size)` and `"reference_grid"` `(2,)`, their rows and columns of
        patches. They can be saved, and given to [`NexusGenEmbedding`] in place of prompts and images.

    Raises:
        TypeError: if `mllm` is another language model.
        ValueError: if an option is unknown, numbers do not fit, given images differ in shape, or a prompt is too
            long or names the image more than once.
    """
    check_options(language, max_pixels)
    check_language_model(mllm)
    number = max(len(prompts), len(images or ()), 1)
    if len(prompts) not in (1, number) or (images is not None and len(images) not in (1, number)):
        raise ValueError(
            f"`prompt` of NexusGenEmbedding has {len(prompts)} texts and `image` of NexusGenEmbedding "
            f"{len(images or ())} images. Give one image for all, or one for each prompt."
        )
    per_prompt = [None] * number if images is None else list(images) * (number // len(images))
    pairs = zip(list(prompts) * (number // len(prompts)), per_prompt)
    asked = [_inputs(mllm, processor, prompt, image, language, max_pixels) for prompt, image in pairs]
    grids = sorted({tuple(inputs["image_grid_thw"][0, 1:].tolist()) for inputs in asked})
    if images is not None and len(grids) > 1:
        raise ValueError(
            f"`image` of NexusGenEmbedding: the images of one call must have one shape, but theirs have {grids} "
            f"patches (rows, columns) after they are reduced to {max_pixels} pixels. Crop them alike, or draw them in "
            f"calls of their own."
        )
    outputs = [mllm(**inputs, predict_image=True) for inputs in asked]
    embeds = {"image_embeds": torch.cat([output.image_embeds for output in outputs])}
    if images is not None:
        embeds["reference_embeds"] = torch.cat([output.reference_embeds for output in outputs])
        embeds["reference_grid"] = torch.tensor(grids[0])
    return embeds


def _inputs(
    mllm: Any, processor: Any, prompt: str, image: Any, language: Language, max_pixels: int
) -> dict[str, torch.Tensor]:
    seen = (
        []
        if image is None
        else [fit_image(image, processor, MIN_PIXELS, int(max_pixels), "`image` of NexusGenEmbedding")]
    )
    shown = [*seen, mllm.blank_image()]
    # Within these bounds no image is resized again.
    bounds = sorted(math.prod(each.size) for each in shown)
    inputs = qwen_vl_inputs(processor, chat_for(prompt, bool(seen), language), shown, bounds[0], bounds[-1])
    length, limit = inputs["input_ids"].shape[1], mllm.config.get_text_config().max_position_embeddings
    if length > limit:
        raise ValueError(
            f"The prompt makes {length} tokens with its images, but the language model takes {limit}. Shorten it."
        )
    device = execution_device(mllm)
    return {name: value.to(device) for name, value in known_inputs(inputs).items()}


def check_embeds(given: Any, width: int) -> dict[str, torch.Tensor]:
    """Return embeddings of [`embed_prompts`] unchanged; raise an error if they have another width or form.

    Raises:
        TypeError: if they are not tensors.
        ValueError: if one is missing or unknown, or has a wrong shape or values that are NaN or infinite.
    """
    what, names = "`image_embeds` of NexusGenEmbedding", ("image_embeds", "reference_embeds", "reference_grid")
    embeds = dict(given) if isinstance(given, Mapping) else {"image_embeds": given}
    if set(embeds) not in ({names[0]}, set(names)):
        raise ValueError(
            f"{what} has the entries {list(embeds)}; expected {names[0]!r}, and for an edited image {names[1]!r} "
            f"and {names[2]!r}, too. `NexusGenEmbedding.embed` gives them."
        )
    for name in names[:2]:
        if name in embeds:
            shape = f"(1 or prompts, length, {width}), as the language model that belongs to the adapter gives"
            check_values(f"{what} ({name!r})", embeds[name], shape, None, None, width)
    grid = embeds.get("reference_grid")
    fits = isinstance(grid, torch.Tensor) and not grid.is_meta and grid.dtype in (torch.int32, torch.int64)
    if grid is not None and not (fits and grid.shape == (2,) and embeds[names[1]].shape[0] == len(embeds[names[0]])):
        raise ValueError(
            f"{what} ({names[2]!r}) must be two integers, the rows and columns of patches of `reference_embeds`, "
            f"which has as many entries as `image_embeds`; got {shown(grid)}."
        )
    return embeds


def editing_ids(canvas: Canvas, grids: Sequence[Sequence[int]], merge: int) -> torch.Tensor:
    """Return rotary positions of the editing decoder's text tokens.

    Args:
        canvas (`Canvas`): Every image is spread over its latent cells, so positions may be fractional.
        grids (`Sequence[Sequence[int]]`): Rows and columns of patches of the drawn image, then of the given one.
        merge (`int`): Patches along a side of an embedding.

    Returns:
        `torch.Tensor` of shape `(length, 3)`: the number of the image, row and column.
    """
    positions = []
    for index, grid in enumerate(grids):
        sides = [
            torch.arange(side // merge, device=canvas.device) * (2 * tokens / side)
            for side, tokens in zip(grid, canvas.grid)
        ]
        rows, columns = torch.meshgrid(*sides, indexing="ij")
        positions.append(torch.stack([torch.full_like(rows, index), rows, columns], dim=-1).flatten(0, 1))
    return torch.cat(positions)
