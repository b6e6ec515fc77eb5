"""Insert-Anything's boxes: which part of an image is used.

A box is `(top, bottom, left, right)` in pixels. The rules are those the published weights were used with, their
corners included: the box of a mask ends at its last row and column, which a slice then leaves out.
"""

import math

import numpy as np


Box = tuple[int, int, int, int]


def mask_box(mask: np.ndarray) -> Box:
    """First and last row and column of a region `(rows, columns)` that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def expand_box(box: Box, height: int, width: int) -> Box:
    """Enlarge a box: a small one to about a tenth of the image, one of 60 percent and more to all of it."""
    top, bottom, left, right = box
    share = (bottom - top + 1) * (right - left + 1) / (height * width)
    wanted = 0.1 + (1 - 0.1) / 0.6 * share if share < 0.6 else 1.0
    ratio = math.sqrt(wanted / share)
    middle_row, middle_column = 0.5 * (top + bottom), 0.5 * (left + right)
    half_height, half_width = ratio * (bottom - top + 1) * 0.5, ratio * (right - left + 1) * 0.5
    return (
        max(0, int(middle_row - half_height)),
        min(height, int(middle_row + half_height)),
        max(0, int(middle_column - half_width)),
        min(width, int(middle_column + half_width)),
    )


def square_box(box: Box, height: int, width: int) -> Box:
    """Lengthen the shorter side of a box to the longer one, as far as the image goes."""
    top, bottom, left, right = box
    rows, columns = bottom - top, right - left
    half = max(rows, columns) // 2
    if rows >= columns:
        left, right = (left + right) // 2 - half, (left + right) // 2 + half
    else:
        top, bottom = (top + bottom) // 2 - half, (top + bottom) // 2 + half
    return max(0, top), min(height, bottom), max(0, left), min(width, right)


def crop_box(mask: np.ndarray) -> Box:
    """Return the part of an image around a region `(rows, columns)` that is redrawn."""
    size = mask.shape
    return square_box(expand_box(expand_box(mask_box(mask), *size), *size), *size)
