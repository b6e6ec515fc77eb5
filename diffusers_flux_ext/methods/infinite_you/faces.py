"""The interface of face encoders: from an image to one face's embedding and key points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image


logger = logging.get_logger(__name__)

SMALL_FACE = 48
"""Side in pixels below which a face is small beside the 112 pixels that ArcFace looks at."""


@dataclass(frozen=True, eq=False)
class FaceEmbedding:
    """One face of an image.

    Args:
        embedding (`torch.Tensor` of shape `(512,)`): Normalised ArcFace embedding.
        keypoints (`torch.Tensor` of shape `(5, 2)`):
            Pixels `(x, y)` of left eye, right eye, nose and mouth corners, left and right as seen in the image.
        box (`tuple[float, float, float, float]`): Left, top, right and bottom, in pixels.
    """

    embedding: torch.Tensor
    keypoints: torch.Tensor
    box: tuple[float, float, float, float]


FaceEmbeds: TypeAlias = torch.Tensor | np.ndarray | FaceEmbedding | Sequence[torch.Tensor | np.ndarray | FaceEmbedding]
"""Embeddings of one face for all prompts, or of one per prompt."""


class FaceEncoder(ABC):
    """Finds a face and embeds it. Subclass it to use another detector or recognition network."""

    @abstractmethod
    def encode(self, image: Image.Image, index: int | None = None) -> FaceEmbedding:
        """Embed one face of an image.

        Args:
            image (`PIL.Image.Image`): The image, in RGB.
            index (`int`, *optional*): Which face, from left to right; the largest by default.

        Returns:
            `FaceEmbedding`

        Raises:
            ValueError: if there is no face, or no face of that index.
        """


def choose_face(boxes: Sequence[Sequence[float]], index: int | None = None) -> int:
    """Choose a face by its position in `boxes`, with a warning if the choice may surprise.

    Args:
        boxes (`Sequence[Sequence[float]]`): Left, top, right and bottom of each face found.
        index (`int`, *optional*): Which face, from left to right; the largest by default.

    Returns:
        `int`

    Raises:
        ValueError: if there is no face, or no face of that index.
    """
    if not boxes:
        raise ValueError(
            "No face was found in the image. Use one that shows a face from the front, at least "
            f"{SMALL_FACE} pixels wide, or give `id_embeds` or key points instead."
        )
    if index is not None:
        if not 0 <= index < len(boxes):
            raise ValueError(f"`face_index` is {index}, but {len(boxes)} faces were found; they count from 0.")
        chosen = sorted(range(len(boxes)), key=lambda face: boxes[face][0])[index]
    else:
        chosen = max(range(len(boxes)), key=lambda face: _area(boxes[face]))
        if len(boxes) > 1:
            logger.warning(f"{len(boxes)} faces were found; the largest is used. Choose another one by its index.")
    left, top, right, bottom = boxes[chosen][:4]
    if min(right - left, bottom - top) < SMALL_FACE:
        logger.warning(
            f"The face is only {right - left:.0f} x {bottom - top:.0f} pixels, so its identity may come out weak. "
            f"Use a larger image of it."
        )
    return chosen


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
