"""Drawing key points: numbers of the original's drawing with OpenCV, and fitting pictures to the canvas."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_flux_ext import draw_face_keypoints
from diffusers_flux_ext.methods.infinite_you.keypoints import COLORS, fit_to_canvas, read_keypoints


# Size, key points, and how many pixels of each colour OpenCV's own functions give (sticks, then points).
CASES = {
    "portrait": (
        (864, 1152),
        [[350.2, 480.7], [520.9, 470.1], [440.4, 590.6], [370.0, 690.3], [510.5, 684.8]],
        [947, 965, 0, 807, 775, 317, 317, 317, 317, 317],
    ),
    "small": (
        (256, 320),
        [[80.5, 100.5], [160.1, 90.9], [118.3, 150.2], [92.4, 200.8], [151.7, 195.1]],
        [365, 445, 0, 317, 310, 317, 317, 317, 317, 317],
    ),
    "over the rim": (
        (128, 128),
        [[-5.0, 30.0], [60.0, 28.0], [28.0, 60.0], [10.0, 90.0], [50.0, 140.0]],
        [217, 223, 0, 139, 499, 72, 317, 317, 317, 0],
    ),
}


def count(array, color):
    return int((array == np.array(color, dtype=np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize(("size", "points", "expected"), CASES.values(), ids=CASES)
def test_as_many_pixels_of_every_colour_as_the_original(size, points, expected):
    array = np.asarray(draw_face_keypoints(points, *size))
    sticks = [count(array, [int(value * 0.6) for value in color]) for color in COLORS]
    circles = [count(array, color) for color in COLORS]
    assert (array > 0).any(axis=2).sum() == sum(sticks) + sum(circles)
    for ours, original in zip(sticks + circles, expected):
        assert abs(ours - original) <= 0.01 * original


def test_the_pixels_of_a_point():
    array = np.asarray(draw_face_keypoints([[30, 20], [90, 20], [60, 60], [30, 100], [90, 100]], 120, 120))
    (rows, columns) = np.nonzero((array[:40, :60] == COLORS[0]).all(axis=2))
    assert len(rows) == 317
    assert ((rows - 20) ** 2 + (columns - 30) ** 2).max() == 100
    assert array[40, 45].tolist() == [153, 0, 0]


def test_pictures_are_fitted_to_the_shorter_side():
    wide = Image.new("RGB", (100, 50), (10, 20, 30))
    fitted = fit_to_canvas(wide, 40, 60)
    assert fitted.size == (40, 60)
    assert fitted.getpixel((20, 30)) == (10, 20, 30)
    assert [fitted.getpixel((20, row)) for row in (19, 20, 39, 40)] == [
        (255, 255, 255), (10, 20, 30), (10, 20, 30), (255, 255, 255),
    ]  # fmt: skip
    tall = fit_to_canvas(Image.new("RGB", (50, 100), (10, 20, 30)), 40, 60)
    assert {tall.getpixel((column, row)) for column in (0, 39) for row in (0, 59)} == {(10, 20, 30)}
    landscape = fit_to_canvas(Image.new("RGB", (50, 100), (10, 20, 30)), 80, 40)
    assert [landscape.getpixel((column, 20)) for column in (29, 30, 49, 50)] == [
        (255, 255, 255), (10, 20, 30), (10, 20, 30), (255, 255, 255),
    ]  # fmt: skip


def test_reading_key_points():
    pixels = torch.tensor([[10.0, 20.0]] * 5)
    assert [points.tolist() for points in read_keypoints(pixels, 40, 80)] == [pixels.tolist()]
    assert len(read_keypoints(pixels.expand(3, 5, 2), 40, 80)) == 3
    assert read_keypoints([[0.25, 0.25]] * 5, 40, 80)[0].tolist() == [[10.0, 20.0]] * 5
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        read_keypoints(np.zeros((5, 3)), 40, 80)
