"""User images: types, shapes and values, as accepted by diffusers' image processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from .checks import shown
from .numbers import LARGEST_VALUE, check_finite


if TYPE_CHECKING:
    from diffusers.image_processor import VaeImageProcessor

ImageInput: TypeAlias = Image.Image | np.ndarray | torch.Tensor
"""An image, or a batch of them in one array or tensor; see [`read_image`]."""

ImageInputs: TypeAlias = ImageInput | Sequence[ImageInput]
"""An image, or a list of them."""

OVERSHOOT = 0.5
"""How far beyond -1 and 1 floats may go: sharp filters overshoot, and values up to 255 must not pass for white."""


def read_image(
    what: str, image: Any, latent_channels: int | None = None, signed: bool = True, values: bool = True
) -> Any:
    """Read one image, or a batch in one array or tensor, as RGB floats.

    Args:
        what (`str`): What it is, for errors, such as "`image` of FillMask".
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            A PIL image of any mode of 8 bits; an array `(height, width)`, `(height, width, channels)` or a batch of
            the latter; a tensor `(height, width)`, `(channels, height, width)` or a batch. With 1, 3 or 4 channels:
            grey is repeated and alpha dropped. Floats in [0, 1], or [-1, 1] as diffusers takes them, booleans, or
            integers up to 255.
        latent_channels (`int`, *optional*):
            Tensors with this number of channels are scaled latents and returned unchanged.
        signed (`bool`, defaults to `True`): Whether floats in [-1, 1] are accepted.
        values (`bool`, defaults to `True`): Whether to check values, which synchronises with a GPU once.

    Returns:
        `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`: with three channels; the input itself where nothing has to
        change.

    Raises:
        TypeError: if it is something else.
        ValueError: if it has no pixels, another shape, or values that are NaN, infinite or out of range.
    """
    if isinstance(image, Image.Image):
        return _read_pil(what, image)
    if isinstance(image, np.ndarray) and image.dtype.kind in "biuf":
        rgb = _in_rgb(what, image, -1, None)
        if values:
            _check_values(what, torch.from_numpy(np.require(_known(rgb), requirements=["C", "W"])), signed)
        return rgb if image.dtype.kind == "f" else rgb.astype(np.float32) / (1 if image.dtype.kind == "b" else 255)
    if isinstance(image, torch.Tensor) and not image.is_complex() and image.layout is torch.strided:
        rgb = _in_rgb(what, image, -3, latent_channels)
        if latent_channels is not None and rgb.shape[-3] == latent_channels and rgb.is_floating_point():
            if values:
                check_finite(what, rgb, -LARGEST_VALUE, LARGEST_VALUE)
            return rgb
        if values:
            _check_values(what, rgb, signed)
        return rgb if rgb.is_floating_point() else rgb.float() / (1 if rgb.dtype is torch.bool else 255)
    raise TypeError(
        f"{what} must be a PIL image, a NumPy array or a dense tensor of real numbers, got {shown(image)}. Open files "
        f"first, for example with `diffusers.utils.load_image`."
    )


def read_images(what: str, images: Any, latent_channels: int | None = None, values: bool = True) -> Any:
    """Read an image or a list or tuple of them, see [`read_image`]; raise its errors, and one for an empty list."""
    if not isinstance(images, (list, tuple)):
        return read_image(what, images, latent_channels, values=values)
    if not images:
        raise ValueError(f"{what} is an empty list. Give at least one image.")
    read = [read_image(what, each, latent_channels, values=values) for each in images]
    kinds = {Image.Image if isinstance(each, Image.Image) else type(each) for each in read}
    if len(kinds) > 1:
        raise TypeError(f"{what} mixes {sorted(kind.__name__ for kind in kinds)}. Give images of one kind.")
    return read


def read_pixels(
    what: str, images: Any, processor: VaeImageProcessor, height: int, width: int, allow_latents: bool = False
) -> torch.Tensor:
    """Read images, whose values [`read_images`] has checked, and resize them to one size.

    Args:
        what (`str`): What they are, for errors.
        images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): See [`read_image`].
        processor (`VaeImageProcessor`): The pipeline's image processor, whose resizing is used.
        height (`int`): Pixels.
        width (`int`): Pixels.
        allow_latents (`bool`): Whether a tensor with the VAE's number of channels holds latents.

    Returns:
        `torch.Tensor` of shape `(images, 3, height, width)` in [-1, 1], or scaled latents.

    Raises:
        TypeError: if something is not an image.
        ValueError: if an image has a wrong shape, or latents are of another size.
    """
    channels = processor.config.vae_latent_channels
    read = read_images(what, images, channels if allow_latents else None, values=False)
    several = isinstance(read, list) and len({tuple(getattr(each, "shape", ())) for each in read}) > 1
    # Images of several sizes are resized one by one; diffusers stacks arrays and tensors before.
    parts = [processor.preprocess(each, height=height, width=width) for each in (read if several else [read])]
    latents = [part for part in parts if part.shape[1] == channels]
    factor = processor.config.vae_scale_factor // 2
    if latents and (len(latents) < len(parts) or latents[0].shape[2:] != (height // factor, width // factor)):
        raise ValueError(
            f"{what} holds latents of the shape {tuple(latents[0].shape)}; expected (images, {channels}, "
            f"{height // factor}, {width // factor}) for {height} x {width} pixels (height x width), and no images "
            f"beside them."
        )
    return torch.cat(parts) if several else parts[0]


def _read_pil(what: str, image: Image.Image) -> Image.Image:
    if 0 in image.size or image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"{what} must have pixels of 8 bits, got {shown(image)}. Convert it to 'L' or 'RGB' first.")
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_rgb(what: str, image: Any, axis: int, latent_channels: int | None) -> Any:
    """Repeat grey and drop alpha along the channel axis; leave latents unchanged."""
    given = image
    if image.ndim == 2:
        given = image[..., None] if axis == -1 else image[None]
    channels = given.shape[axis] if given.ndim in (3, 4) else 0
    if 0 in given.shape or channels not in (1, 3, 4, latent_channels):
        others = f"; tensors of {latent_channels} channels are VAE latents" if latent_channels and axis == -3 else ""
        raise ValueError(
            f"{what} must have the shape (height, width, channels) for an array or (channels, height, width) for a "
            f"tensor, or be a batch of them, with 1, 3 or 4 channels{others}; got {tuple(image.shape)}."
        )
    if channels in (3, latent_channels):
        return given
    wanted = [0, 0, 0] if channels == 1 else [0, 1, 2]
    return given[..., wanted] if axis == -1 else given[..., wanted, :, :]


def _known(array: np.ndarray) -> np.ndarray:
    """Convert an array to a type that torch supports."""
    return array.astype(np.int64) if array.dtype.kind == "u" and array.dtype != np.uint8 else array


def _check_values(what: str, tensor: torch.Tensor, signed: bool) -> None:
    if tensor.dtype in (torch.uint8, torch.bool) and tensor.device.type != "meta":
        return
    floats = tensor.is_floating_point()
    check_finite(
        f"{what}, an image in {'floats from 0 to 1' if floats else 'integers from 0 to 255'},",
        tensor,
        (-1 - OVERSHOOT if signed else -OVERSHOOT / 2) if floats else 0,
        1 + OVERSHOOT if floats else 255,
    )
