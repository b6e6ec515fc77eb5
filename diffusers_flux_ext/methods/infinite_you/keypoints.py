"""The five key points of a face as InfiniteYou's control image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...inputs.checks import shown


Keypoints: TypeAlias = (
    torch.Tensor | np.ndarray | Image.Image | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]
)
"""Five points `(x, y)` of one face or of one per prompt, or a drawing of them; see [`InfiniteYouIdentity`]."""

# Left eye, right eye, nose and the corners of the mouth; a stick has the colour of the point that it starts from.
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
NOSE, STICK_WIDTH, STICK_BRIGHTNESS, RADIUS = 2, 4, 0.6, 10
FAR = 100_000


def draw_face_keypoints(keypoints: Any, width: int, height: int) -> Image.Image:
    """Draw five key points and the sticks from the nose to the others.

    The drawing matches that of InfiniteYou with OpenCV ([code](https://github.com/bytedance/InfiniteYou)): the same
    points, sticks and colours; less than one percent of the pixels, on the edges of sticks, may differ.

    Args:
        keypoints (`torch.Tensor` or `np.ndarray` of shape `(5, 2)`): `(x, y)` in pixels, as in [`FaceEmbedding`].
        width (`int`): Pixels.
        height (`int`): Pixels.

    Returns:
        `PIL.Image.Image` in RGB, on black.
    """
    points = [(float(x), float(y)) for x, y in np.asarray(keypoints)]
    sticks = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(sticks)
    for index, color in enumerate(COLORS):
        if index != NOSE:
            draw.polygon(_stick(points[index], points[NOSE]), fill=color)
    image = Image.fromarray((np.asarray(sticks) * STICK_BRIGHTNESS).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for (x, y), color in zip(points, COLORS):
        # Row by row: pillow's own circles are a little wider.
        for dy in range(-RADIUS, RADIUS + 1):
            half = math.isqrt(RADIUS**2 - dy**2)
            draw.line((int(x) - half, int(y) + dy, int(x) + half, int(y) + dy), fill=color)
    return image


def _stick(start: tuple[float, float], stop: tuple[float, float]) -> list[tuple[int, int]]:
    """Return a thin ellipse between two points, as a polygon with one vertex per degree in whole pixels."""
    middle = [int((one + other) / 2) for one, other in zip(start, stop)]
    half = int(math.dist(start, stop) / 2)
    turn = math.radians(int(math.degrees(math.atan2(start[1] - stop[1], start[0] - stop[0]))))
    vertices: list[tuple[int, int]] = []
    for degree in range(361):
        along, across = half * math.cos(math.radians(degree)), STICK_WIDTH * math.sin(math.radians(degree))
        vertex = (
            round(middle[0] + along * math.cos(turn) - across * math.sin(turn)),
            round(middle[1] + along * math.sin(turn) + across * math.cos(turn)),
        )
        vertices.append(vertex)
    return vertices


def fit_to_canvas(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize an image to the shorter side of the canvas and centre it on white, as InfiniteYou does.

    Args:
        image (`PIL.Image.Image`): The image.
        width (`int`): Pixels of the canvas.
        height (`int`): Pixels of the canvas.

    Returns:
        `PIL.Image.Image` of the canvas' size; what extends beyond it is cut off equally on both sides.
    """
    if width <= height:
        size = (width, max(int(width * image.height / image.width), 1))
    else:
        size = (max(int(height * image.width / image.height), 1), height)
    padded = Image.new("RGB", (width, height), (255, 255, 255))
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    padded.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
    return padded


def read_keypoints(keypoints: Any, width: int, height: int, what: str = "`keypoints`") -> list[np.ndarray]:
    """Read key points in pixels of the canvas.

    Args:
        keypoints (`torch.Tensor`, `np.ndarray` or nested lists of shape `(5, 2)` or `(prompts, 5, 2)`):
            `(x, y)` in pixels of the canvas, or in fractions of it when all are from 0 to 1.
        width (`int`): Pixels.
        height (`int`): Pixels.
        what (`str`): What they are, for errors.

    Returns:
        `list[np.ndarray]`: one array of shape `(5, 2)`, or one per prompt.

    Raises:
        TypeError: if they are not numbers.
        ValueError: if the shape is wrong, or a number is NaN, infinite or far off the canvas.
    """
    dense = not isinstance(keypoints, torch.Tensor) or (keypoints.layout is torch.strided and not keypoints.is_meta)
    try:
        if not isinstance(keypoints, (torch.Tensor, np.ndarray, list, tuple)) or not dense:
            raise TypeError
        points = np.asarray(keypoints.cpu() if isinstance(keypoints, torch.Tensor) else keypoints)
        if points.dtype.kind not in "iuf":
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"{what} must be an array, tensor or lists of numbers, got {shown(keypoints)}.") from None
    points = points.astype(np.float64)
    if points.ndim not in (2, 3) or points.shape[-2:] != (len(COLORS), 2):
        raise ValueError(
            f"{what} has the shape {points.shape}; expected (5, 2), or (prompts, 5, 2): x and y of both eyes, "
            f"the nose and both corners of the mouth."
        )
    if not points.size or not np.abs(points).max() <= FAR:
        raise ValueError(f"{what} must be finite numbers within {FAR} pixels of the canvas, got {points.tolist()}.")
    if points.min() >= 0 and points.max() <= 1:
        points = points * (width, height)
    return list(points if points.ndim == 3 else points[None])
