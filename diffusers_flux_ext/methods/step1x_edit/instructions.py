"""How Step1X-Edit asks Qwen2.5-VL about an image and an instruction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image

from ...inputs.qwen_vl import IMAGE_SPAN, chat_text, hide_tokens, last_hidden_states, qwen_vl_inputs, tokenize


logger = logging.get_logger(__name__)

PREFIX = (
    'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for image '
    "generation. Evaluate the level of detail in the user prompt:\n"
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
    "relationships to create vivid and concrete scenes.\n"
    "- If the prompt is already detailed, refine and enhance the existing details slightly without "
    "overcomplicating.\n\n"
    "Here are examples of how to transform or refine prompts:\n"
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
    "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
    "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass "
    "skyscrapers.\n\n"
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary "
    "or evaluations:\n"
    "User Prompt:"
)
"""The question as published."""

PREFIX_TOKENS = 217
"""Tokens of the system prompt and the question, which are dropped."""

MAX_TOKENS = 640
MIN_PIXELS, MAX_PIXELS = 256 * 28 * 28, 324 * 28 * 28
IMAGE_END = "<|vision_end|>"


def cut_quotes(text: str, at_apostrophes: bool = True) -> list[str]:
    """Split a text into separately tokenised pieces: quoted text character by character, each in curly quotes.

    Args:
        text (`str`): The text from the instruction on.
        at_apostrophes (`bool`): Whether `'` is a quote, too, as published: the one of "dog's" then opens a quotation.

    Returns:
        `list[str]`: the pieces; the quotes themselves stand at the end of the piece before and at the start of the one
        after. A quotation that is never closed reaches to the end.
    """
    text = text.replace("“", '"').replace("”", '"')
    text = text.replace("'", '"') if at_apostrophes else text
    pieces = []
    for index, part in enumerate(parts := text.split('"')):
        if index % 2:
            pieces += [f"“{character}”" for character in part]
        else:
            pieces.append('"' * (index > 0) + part + '"' * (index + 1 < len(parts)))
    return [piece for piece in pieces if piece]


def instruction_tokens(processor: Any, instruction: str, at_apostrophes: bool = True) -> list[int]:
    """Return token ids of the chat about one image, as published.

    Args:
        processor (`QwenVLProcessor`): Gives the tokenizer.
        instruction (`str`): What to do with the image.
        at_apostrophes (`bool`): See [`cut_quotes`].

    Returns:
        `list[int]`: with one `<|image_pad|>`.
    """
    head, end, tail = chat_text(f"{PREFIX}Picture 1: {IMAGE_SPAN}{instruction}").partition(IMAGE_END)
    opening, closing = tokenize(processor, "“"), tokenize(processor, "”")
    tokens = tokenize(processor, head + end)
    for piece in cut_quotes(tail, at_apostrophes):
        ids = tokenize(processor, piece)
        if ids[: len(opening)] == opening and ids[-len(closing) :] == closing:
            ids = ids[len(opening) : -len(closing)]
        tokens += ids
    return tokens


def encode_instructions(
    mllm: torch.nn.Module,
    processor: Any,
    instructions: Sequence[str],
    images: Sequence[Image.Image],
    cut: bool = True,
    name: str = "`prompt`",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the language model's hidden states for instructions about images, one by one and without padding.

    Args:
        mllm (`Qwen2_5_VLForConditionalGeneration`): The language model.
        processor (`QwenVLProcessor`): Its processor.
        instructions (`Sequence[str]`): What to do; one for all images, or one each.
        images (`Sequence[PIL.Image.Image]`): One for all instructions, or one each.
        cut (`bool`): Whether `'` is a quote, see [`cut_quotes`].
        name (`str`): What the instructions are called in errors.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: hidden states `(count, 640, hidden_size)`, zero after the last token, and
        the mask `(count, 640)`, boolean, both on the language model's device.

    Raises:
        ValueError: if the numbers of instructions and images do not fit.
    """
    if 1 not in (len(instructions), len(images)) and len(instructions) != len(images):
        raise ValueError(f"{name} has {len(instructions)} texts for {len(images)} images. Give one, or one per image.")
    count = max(len(instructions), len(images))
    found = []
    for index in range(count):
        instruction = instructions[index if len(instructions) > 1 else 0]
        inputs = qwen_vl_inputs(
            processor,
            instruction_tokens(processor, instruction, cut),
            [images[index if len(images) > 1 else 0]],
            min_pixels=MIN_PIXELS,
            max_pixels=MAX_PIXELS,
        )
        # As published, which takes the token of id 0, an exclamation mark, for padding.
        inputs = hide_tokens(mllm, inputs, inputs["input_ids"] == 0)
        states = last_hidden_states(mllm, inputs)[0, PREFIX_TOKENS:]
        if len(states) > MAX_TOKENS:
            logger.warning(
                f"The instruction {instruction!r} with its image has {len(states)} tokens, but {MAX_TOKENS} fit; "
                f"the end was cut off."
            )
        found.append(states[:MAX_TOKENS])
    embeds = found[0].new_zeros(count, MAX_TOKENS, found[0].shape[-1])
    mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    for index, states in enumerate(found):
        embeds[index, : len(states)], mask[index, : len(states)] = states, True
    return embeds, mask


def step1x_size(width: int, height: int, size_level: int = 1024, multiple: int = 16) -> tuple[int, int]:
    """Return the size in which Step1X-Edit draws an image: its aspect, and about the area of the size level.

    Args:
        width (`int`): Pixels of the image to edit.
        height (`int`): Pixels.
        size_level (`int`, *optional*, defaults to 1024): Side of a square of the same area; published are 512, 768
            and 1024.
        multiple (`int`, *optional*, defaults to 16): What both sides are rounded down to, but not to nothing.

    Returns:
        `tuple[int, int]`: width and height.
    """
    ratio = width / height
    if width > height:
        wide = math.ceil(math.sqrt(size_level * size_level * ratio))
        size = wide, math.ceil(wide / ratio)
    else:
        high = math.ceil(math.sqrt(size_level * size_level / ratio))
        size = math.ceil(high * ratio), high
    return max(size[0] // multiple, 1) * multiple, max(size[1] // multiple, 1) * multiple
