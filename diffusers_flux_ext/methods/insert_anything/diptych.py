"""The diptych of Insert-Anything: two images side by side, made and taken apart again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from ...canvas import Canvas
from ...inputs.masks import RegionMask, list_regions, read_mask
from ...inputs.vision import to_pil
from .boxes import Box, crop_box, mask_box
from .opencv import dilate, pad_around, pad_to_square, resize_linear


logger = logging.get_logger(__name__)

# The published settings: the object's margin, the growth of the mask, the rim that is not pasted.
OBJECT_MARGIN = 1.3
MASK_GROWTH = 6
RIM = 2
FEWEST_PIXELS = 10
SMALLEST_CROP = 16
WHITE = 255


@dataclass(frozen=True, eq=False)
class Diptych:
    """The images of one call.

    Args:
        image (`PIL.Image.Image` of `2 * size` x `size` pixels): The object on white, and the part of the source.
        mask (`PIL.Image.Image` of the same size, in grey): White is drawn.
        reference (`PIL.Image.Image` of `size` x `size` pixels): The object on white.
        source (`np.ndarray` of shape `(height, width, 3)`): The whole source, in uint8.
        region (`np.ndarray` of shape `(height, width)`): The part that is drawn, boolean: the grown mask.
        box (`tuple[int, int, int, int]`): The part of the source, `(top, bottom, left, right)`.
    """

    image: Image.Image
    mask: Image.Image
    reference: Image.Image
    source: np.ndarray
    region: np.ndarray
    box: Box


def make_diptych(
    source_image: Any,
    source_mask: RegionMask,
    reference_image: Any,
    reference_mask: RegionMask | None = None,
    size: int = 768,
) -> Diptych:
    """Cut the object out of the reference, and put it beside the part of the source that is redrawn.

    Args:
        source_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): Where the object goes.
        source_mask (`RegionMask`): White is drawn; of another size it is stretched to the image.
        reference_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The object.
        reference_mask (`RegionMask`, *optional*): White is the object; the whole image by default.
        size (`int`, defaults to 768): Height of the diptych.

    Returns:
        `Diptych`

    Raises:
        ValueError: if a mask is empty, the reference has no object, or the source is too small.
    """
    source, region = _image_and_mask("source", source_image, source_mask)
    if not region.any():
        raise ValueError(
            "`source_mask` is empty, so there is nowhere to draw. White is drawn, in an image from a grey "
            "level of 129 on."
        )
    if region.all():
        logger.warning("The mask of the source covers all of it: the image is drawn anew without any surroundings.")
    region = dilate(region, MASK_GROWTH)
    box = top, bottom, left, right = crop_box(region)
    if min(bottom - top, right - left) < SMALLEST_CROP:
        raise ValueError(
            f"The part of `source_image` around `source_mask` is {bottom - top} x {right - left} pixels (height x "
            f"width); it must be at least {SMALLEST_CROP}. Enlarge the source, which is {source.shape[0]} x "
            f"{source.shape[1]}."
        )
    reference = _cut_out(*_image_and_mask("reference", reference_image, reference_mask), size)
    crop = resize_linear(pad_to_square(source[top:bottom, left:right], WHITE), size, size)
    hole = resize_linear(pad_to_square(region[top:bottom, left:right].astype(np.uint8), 0), size, size)
    return Diptych(
        Image.fromarray(np.concatenate([reference, crop], axis=1)),
        Image.fromarray(np.concatenate([np.zeros_like(hole), hole * WHITE], axis=1)),
        Image.fromarray(reference),
        source,
        region,
        box,
    )


def paste_panel(diptych: Diptych, panel: Image.Image, within: Literal["crop", "mask"] = "crop") -> Image.Image:
    """Put the drawn half of a diptych back into the source.

    Args:
        diptych (`Diptych`): The diptych that the panel was drawn from.
        panel (`PIL.Image.Image`): Its right half, of any size.
        within (`"crop"` or `"mask"`, defaults to `"crop"`):
            Paste the whole part of the source but a rim of two pixels, or only what the grown mask covers of it.

    Returns:
        `PIL.Image.Image` of the source's size.
    """
    top, bottom, left, right = diptych.box
    rows, columns = bottom - top, right - left
    side = max(rows, columns)
    drawn = resize_linear(np.asarray(panel.convert("RGB")), side, side)
    above, before = (side - rows) // 2, (side - columns) // 2
    inner = np.s_[top + RIM : bottom - RIM, left + RIM : right - RIM]
    drawn = drawn[above + RIM : above + rows - RIM, before + RIM : before + columns - RIM]
    pasted = diptych.source.copy()
    pasted[inner] = np.where(diptych.region[inner][..., None], drawn, pasted[inner]) if within == "mask" else drawn
    return Image.fromarray(pasted)


def _image_and_mask(owner: str, image: Any, mask: RegionMask | None) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(to_pil(image, f"`{owner}_image`"))
    height, width = pixels.shape[:2]
    if mask is None:
        return pixels, np.ones((height, width), dtype=bool)
    if isinstance(mask, Image.Image) and 0 not in mask.size and mask.mode in ("1", "L", "RGB"):
        inside = np.asarray(mask.convert("L")) > 128
    else:
        inside = read_mask(mask, Canvas(height, width, 1, 1, torch.device("cpu"), torch.float32), f"`{owner}_mask`")
    return pixels, resize_linear(inside.astype(np.uint8), height, width) > 0


def _cut_out(image: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    if mask.sum() < FEWEST_PIXELS:
        raise ValueError(
            f"`reference_mask` has {mask.sum()} pixels of `reference_image`, so it shows no object; at least "
            f"{FEWEST_PIXELS} are needed. White is the object; without a mask the whole image is."
        )
    top, bottom, left, right = mask_box(mask)
    rows, columns = bottom - top, right - left
    if not rows or not columns:
        raise ValueError(
            f"The object of `reference_image` in `reference_mask` is {rows + 1} x {columns + 1} pixels (height x "
            f"width). Its last row and column are cut off, so it must be at least two pixels each way."
        )
    alone = np.where(mask[..., None], image, np.uint8(WHITE))[top:bottom, left:right]
    height, width = int(rows * OBJECT_MARGIN), int(columns * OBJECT_MARGIN)
    alone = pad_around(alone, (height - rows) // 2, (width - columns) // 2, height, width, WHITE)
    return resize_linear(pad_to_square(alone, WHITE), size, size)


def read_diptychs(
    source_image: Any, source_mask: Any, reference_image: Any, reference_mask: Any, size: int
) -> list[Diptych]:
    """Make one diptych for all prompts, or one for each.

    Args:
        source_image, source_mask, reference_image, reference_mask:
            As for [`make_diptych`]; a list gives one for each prompt, and anything but a list serves them all.
        size (`int`): Height of the diptychs.

    Returns:
        `list[Diptych]`

    Raises:
        ValueError: if lists differ in length, or for the reasons of [`make_diptych`].
    """
    given: dict[str, list[Any]] = {
        "source_image": _listed(source_image),
        "source_mask": list_regions(source_mask, "`source_mask`"),
        "reference_image": _listed(reference_image),
        "reference_mask": list_regions(reference_mask, "`reference_mask`"),
    }
    lengths = {name: len(values) for name, values in given.items()}
    count = max(lengths.values())
    wrong = [f"`{name}`" for name, length in lengths.items() if length not in (1, count)]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} does not go together with the other images and masks: {lengths}. Give one for all "
            f"or one for each."
        )
    return [
        make_diptych(**{name: values[index % len(values)] for name, values in given.items()}, size=size)
        for index in range(count)
    ]


def _listed(images: Any) -> list[Any]:
    return list(images) if isinstance(images, (list, tuple)) else [images]
