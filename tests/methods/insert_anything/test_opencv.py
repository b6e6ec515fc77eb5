"""Resizing and dilation against OpenCV: its recorded results, and the package itself where it is installed.

The checksums were taken from OpenCV 4.11.0 and 5.0.0 on x86-64, which agree:
`zlib.crc32(cv2.resize(picture, size[::-1]).tobytes())` of the pictures below and of their pixels above 128 as zeros
and ones, and `cv2.dilate(mask, np.ones((7, 7), np.uint8), iterations=2)` of their pixels above 250.
"""

import zlib

import numpy as np
import pytest

from diffusers_flux_ext.methods.insert_anything.opencv import dilate, pad_around, pad_to_square, resize_linear


RESIZED = {
    ((100, 80, 3), (192, 192)): (1319361384, 3852308335),
    ((301, 433, 3), (96, 96)): (2881169527, 172954077),
    ((128, 128, 3), (64, 64)): (3172342420, 2310422666),
    ((37, 53), (53, 37)): (1725389660, 2440589426),
    ((13, 5), (96, 96)): (1590909969, 3474958102),
    ((2, 300, 3), (300, 2)): (2426665469, 3144608312),
    ((500, 31), (31, 48)): (3931686119, 826222552),
}
DILATED = {(40, 60): 3112053595, (5, 90): 1486583599}


def pattern(*shape):
    """A picture that looks like noise and needs no generator."""
    numbers = np.arange(np.prod(shape), dtype=np.uint64)
    return (numbers * np.uint64(2654435761) % np.uint64(2**32) >> np.uint64(13)).astype(np.uint8).reshape(shape)


@pytest.mark.parametrize("shape, size", RESIZED)
def test_resizing_is_that_of_opencv(shape, size):
    pictures = pattern(*shape), (pattern(*shape) > 128).astype(np.uint8)
    assert tuple(zlib.crc32(resize_linear(picture, *size).tobytes()) for picture in pictures) == RESIZED[shape, size]


@pytest.mark.parametrize("shape", DILATED)
def test_dilation_is_that_of_opencv(shape):
    assert zlib.crc32(dilate(pattern(*shape) > 250, 6).astype(np.uint8).tobytes()) == DILATED[shape]


@pytest.mark.parametrize("seed", range(10))
def test_any_size_beside_opencv_itself(seed):
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(seed)
    height, width, rows, columns = (int(size) for size in generator.integers(2, 200, 4))
    picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(resize_linear(picture, rows, columns), cv2.resize(picture, (columns, rows)))


def test_the_same_size_is_the_picture_itself():
    picture = pattern(4, 6)
    assert resize_linear(picture, 4, 6) is picture


def test_padding():
    picture = pattern(2, 5, 3)
    padded = pad_to_square(picture, 255)
    assert padded.shape == (5, 5, 3)
    assert np.array_equal(padded[1:3], picture)
    assert (padded[[0, 3, 4]] == 255).all()
    around = pad_around(picture[..., 0], 1, 0, 4, 6, 7)
    assert np.array_equal(around[1:3, :5], picture[..., 0])
    assert (around[:, 5] == 7).all()
