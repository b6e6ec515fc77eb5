"""Operations on images as arrays that agree with OpenCV's, in numpy."""

import numpy as np


# The fixed-point numbers that OpenCV computes with: weights of 11 bits, and what it drops between the two passes.
WEIGHT_ONE = 1 << 11
DROPPED, DROPPED_AGAIN, DROPPED_AT_LAST = 4, 16, 2


def resize_linear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image bilinearly without smoothing, bit for bit like `cv2.resize` with its defaults.

    Pillow's bilinear filter averages over all pixels when it shrinks, which differs by many grey levels. A mask of
    zeros and ones needs OpenCV's rounding, too, where a pixel is half inside.

    Args:
        image (`np.ndarray` of shape `(rows, columns)` or `(rows, columns, channels)`): In uint8.
        height (`int`): New number of rows.
        width (`int`): New number of columns.

    Returns:
        `np.ndarray` of shape `(height, width)` or `(height, width, channels)`, in uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    one, other, weights = _neighbours(image.shape[1], width, (1, -1) + (1,) * (image.ndim - 2))
    across = image.take(one, 1) * weights[0] + image.take(other, 1) * weights[1]
    across >>= DROPPED
    one, other, weights = _neighbours(image.shape[0], height, (-1,) + (1,) * (image.ndim - 1))
    above = (across.take(one, 0) * weights[0]) >> DROPPED_AGAIN
    below = (across.take(other, 0) * weights[1]) >> DROPPED_AGAIN
    rounded = (above + below + (1 << DROPPED_AT_LAST >> 1)) >> DROPPED_AT_LAST
    return rounded.clip(0, 255).astype(np.uint8)


def _neighbours(source: int, target: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return the two pixels that each new one lies between, which are the same at the border, and their weights."""
    place = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    low = np.floor(place)
    share = place - low
    weights = [np.rint(part * np.float32(WEIGHT_ONE)).astype(np.int32) for part in (1 - share, share)]
    one, other = (pixels.astype(np.int64).clip(0, source - 1) for pixels in (low, low + 1))
    return one, other, [part.reshape(shape) for part in weights]


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Grow a region by a square, as `cv2.dilate` does.

    Args:
        mask (`np.ndarray` of shape `(rows, columns)`): Boolean.
        radius (`int`): Pixels to grow on each side.

    Returns:
        `np.ndarray` of shape `(rows, columns)`, boolean.
    """
    for axis in (0, 1):
        margin = [(0, 0), (0, 0)]
        margin[axis] = (radius, radius)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, margin), 2 * radius + 1, axis=axis)
        mask = np.asarray(windows.any(axis=-1))
    return mask


def pad_to_square(image: np.ndarray, value: int) -> np.ndarray:
    """Put an image into the middle of a square; where the margin is odd, the right or lower one is larger."""
    rows, columns = image.shape[:2]
    side = max(rows, columns)
    return pad_around(image, (side - rows) // 2, (side - columns) // 2, side, side, value)


def pad_around(image: np.ndarray, top: int, left: int, height: int, width: int, value: int) -> np.ndarray:
    """Put an image at `(top, left)` of a larger one of `height` x `width` pixels of `value`."""
    rows, columns = image.shape[:2]
    padded = np.full((height, width, *image.shape[2:]), value, dtype=image.dtype)
    padded[top : top + rows, left : left + columns] = image
    return padded
