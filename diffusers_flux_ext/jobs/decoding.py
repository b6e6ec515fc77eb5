"""From bytes of unknown origin to images and tensors, with care."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_NPY = b"\x93NUMPY"


def is_tensor(data: bytes) -> bool:
    """Whether bytes look like a `.npy` or a `.safetensors` file."""
    header = int.from_bytes(data[:8], "little")
    return data.startswith(_NPY) or (data[8:9] == b"{" and 2 <= header <= len(data) - 8)


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image.

    Args:
        data (`bytes`): A file of one of [`FORMATS`].
        max_pixels (`int`): The most pixels, checked before any is decoded.

    Returns:
        `PIL.Image.Image`: in the file's own mode, turned as its EXIF entry says.

    Raises:
        ValueError: if it is not an image, is broken or moves, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            # The number of pixels is checked here, by a limit of its own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError(f"is not an image ({', '.join(FORMATS)}) that can be read") from None
    # Decoders of broken files raise errors of any kind.
    except Exception as error:
        raise ValueError(f"is not an image that can be read: {_words(error)}") from error
    if math.prod(image.size) > max_pixels:
        raise ValueError(f"has {image.width} x {image.height} pixels, more than {max_pixels}; reduce it")
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"has {getattr(image, 'n_frames', 1)} frames; expected an image that does not move")
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise ValueError(f"is a broken or incomplete image: {_words(error)}") from error


def decode_tensor(data: bytes) -> np.ndarray | torch.Tensor:
    """Decode a tensor.

    Args:
        data (`bytes`): A `.npy` file, or a `.safetensors` file of one tensor.

    Returns:
        `np.ndarray` or `torch.Tensor`: as the file has it.

    Raises:
        ValueError: if it is something else, or broken.
    """
    try:
        return _array(data) if data.startswith(_NPY) else _tensor(data)
    except (ValueError, EOFError, OverflowError, MemoryError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"is not a tensor (one in a .safetensors file, or a .npy file): {_words(error)}") from error


def _array(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header: Any = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise ValueError("it is incomplete")
    found: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return found


def _tensor(data: bytes) -> torch.Tensor:
    tensors = safetensors.torch.load(data)
    if len(tensors) != 1:
        raise ValueError(f"it holds {len(tensors)} tensors: {sorted(tensors)[:10]}")
    return next(iter(tensors.values()))


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
