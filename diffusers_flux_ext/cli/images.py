"""Images that commands write."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..checkpoints.writing import written_at_once


def save_image(image: Image.Image, path: Path) -> Path:
    """Write an image whole or not at all.

    Args:
        image (`PIL.Image.Image`): The image.
        path (`Path`): Target file; folders are created.

    Returns:
        `Path`: the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_at_once(path) as temporary:
        image.save(temporary)
    return path
