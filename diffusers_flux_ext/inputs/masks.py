"""Region masks: from images, arrays, tensors or boxes to the pixels and tokens of a canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from ..canvas import Canvas
from .boxes import box_in_pixels
from .checks import shown


RegionMask: TypeAlias = Image.Image | np.ndarray | torch.Tensor | tuple[float, float, float, float]
"""An image, an array, a tensor, or a box `(left, top, right, bottom)` in pixels or in fractions of the canvas."""

FULL_SCALE = 65535
"""Greatest value of a mask: white in 16 bits."""


def mask_to_tokens(mask: RegionMask, canvas: Canvas, what: str = "A region mask") -> torch.Tensor:
    """Return which tokens of the canvas a region covers.

    The mask is resized to the latents by nearest neighbour, whatever its aspect ratio; a token counts as covered when
    any of its 2 x 2 latent pixels is.

    Args:
        mask (`RegionMask`): The region, see [`mask_to_pixels`] for what counts as inside.
        canvas (`Canvas`): The canvas.
        what (`str`): What it is, for errors, such as "`mask` of FillMask".

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`, boolean, on the CPU.
    """
    rows, columns = canvas.grid
    latent_pixels = _resize(read_mask(mask, canvas, what), 2 * rows, 2 * columns)
    return latent_pixels.view(rows, 2, columns, 2).any(dim=3).any(dim=1).flatten()


def mask_to_pixels(mask: RegionMask, canvas: Canvas, what: str = "A region mask") -> torch.Tensor:
    """Return which pixels of the canvas a region covers, resized by nearest neighbour.

    Args:
        mask (`RegionMask`): The region.
        canvas (`Canvas`): The canvas.
        what (`str`): What it is, for errors, such as "`mask` of FillMask".

    Returns:
        `torch.Tensor` of shape `(height, width)`, boolean, on the CPU.
    """
    return _resize(read_mask(mask, canvas, what), canvas.height, canvas.width)


def read_mask(mask: RegionMask, canvas: Canvas, what: str = "A region mask") -> np.ndarray:
    """Read a region in its own resolution.

    Inside is what is brighter than half: the mean of the colour channels, or the alpha channel of an image that is
    not fully opaque. Arrays and tensors may be boolean or of any number type; their scale is 1, 255 or 65535, the
    smallest that holds their largest value. Their shape is `(height, width)`, `(height, width, channels)` for arrays
    or `(channels, height, width)` for tensors, and may have a first axis of length 1 for a batch of one. A box is
    given in fractions when all its numbers are at most 1.

    Args:
        mask (`RegionMask`): The region.
        canvas (`Canvas`): The canvas, for boxes.
        what (`str`): What it is, for errors, such as "`mask` of FillMask".

    Returns:
        `np.ndarray` of shape `(height, width)`, boolean.

    Raises:
        TypeError: if the mask is not one of the accepted kinds.
        ValueError: if an array has another shape or a value that is negative, NaN or infinite, or a box is empty or
            outside the canvas.
    """
    return _read_box(what, mask, canvas) if is_box(mask) else _read_pixels(what, mask)


def _read_pixels(what: str, mask: Any) -> np.ndarray:
    if isinstance(mask, Image.Image) and 0 not in mask.size:
        return _read_image(what, mask)
    if isinstance(mask, torch.Tensor) and not mask.is_complex() and mask.layout is torch.strided and not mask.is_meta:
        array = mask.detach().float().cpu().numpy() if mask.is_floating_point() else mask.detach().cpu().numpy()
        return _read_array(what, array, channels_first=True)
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf":
        return _read_array(what, mask, channels_first=False)
    raise TypeError(
        f"{what} must be a PIL image, an array or tensor of real numbers, or a box (left, top, right, bottom), got "
        f"{shown(mask)}."
    )


def is_box(mask: Any) -> bool:
    """Whether `mask` is a box of four numbers."""
    return isinstance(mask, Sequence) and len(mask) == 4 and all(isinstance(value, Real) for value in mask)


def list_regions(regions: RegionMask | Sequence[RegionMask], what: str = "A list of region masks") -> list[RegionMask]:
    """Return one region for all prompts, or one per prompt, as a list.

    Args:
        regions (`RegionMask` or several):
            Several are a list or tuple, or an array or tensor of four axes, the first of which counts the prompts.
        what (`str`): What they are, for errors.

    Returns:
        `list[RegionMask]`

    Raises:
        ValueError: if there is no region.
    """
    several: Any = regions
    batch = isinstance(regions, (np.ndarray, torch.Tensor)) and regions.ndim == 4
    batch = batch or (isinstance(regions, (list, tuple)) and not is_box(regions))
    listed = list(several) if batch else [several]
    if not listed:
        raise ValueError(f"{what} is empty. Give one mask for all prompts, or one per prompt.")
    return listed


def check_regions(what: str, regions: Any) -> None:
    """Raise an error of [`read_mask`] for regions that cannot be read on any canvas."""
    for region in list_regions(regions, what):
        if not is_box(region):
            _read_pixels(what, region)
            continue
        numbers: Any = region
        if not all(math.isfinite(value) for value in numbers if not isinstance(value, int)):
            raise ValueError(f"{what} must be a box of finite numbers (left, top, right, bottom), got {region}.")


def _read_box(what: str, given: Any, canvas: Canvas) -> np.ndarray:
    check_regions(what, given)
    # Numbers beyond the canvas mean its edge, including integers that floats cannot represent.
    far = 2.0 * max(canvas.width, canvas.height) + 2
    try:
        left, top, right, bottom = box_in_pixels(
            [float(min(max(value, -far), far)) for value in given], canvas.width, canvas.height
        )
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    inside = np.zeros((canvas.height, canvas.width), dtype=bool)
    inside[round(top) : max(round(bottom), round(top) + 1), round(left) : max(round(right), round(left) + 1)] = True
    return inside


def _read_image(what: str, image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _read_array(what, np.asarray(image), channels_first=False)
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            return alpha > 127
    return np.asarray(image.convert("RGB"), dtype=np.float32).mean(axis=-1) > 127.5


def _read_array(what: str, array: np.ndarray, channels_first: bool) -> np.ndarray:
    shape = array.shape
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3:
        axes = [axis for axis in ((0, 2) if channels_first else (2, 0)) if array.shape[axis] <= 4]
        array = np.moveaxis(array, axes[0], -1) if axes else array[None]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] > 4):
        raise ValueError(
            f"{what} has the shape {shape}; expected (height, width), (height, width, channels) or (channels, height, "
            f"width) with 1 to 4 channels, or a batch of one of them."
        )
    least, greatest = array.min(), array.max()
    # Comparisons with NaN are false.
    if not 0 <= least <= greatest <= FULL_SCALE:
        raise ValueError(
            f"{what} must have values from 0 to 1, 255 or {FULL_SCALE}, but they go from {least} to {greatest}."
        )
    full_scale = next(scale for scale in (1, 255, FULL_SCALE) if greatest <= scale)
    plane = array.mean(axis=-1, dtype=np.float64) if array.ndim == 3 else array
    return plane > full_scale / 2


def _resize(inside: np.ndarray, height: int, width: int) -> torch.Tensor:
    image = Image.fromarray(inside.astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(image) > 0)
