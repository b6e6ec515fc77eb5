"""Data sets that are drawn row by row: images, and a table of them."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_flux_ext.checkpoints.writing import written_at_once


TABLE = "train.json"
"""The rows that are trained on, beside the images."""


def save(image: Image.Image, path: Path, root: Path) -> str:
    """Save an image, and return its path from the data set's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path.relative_to(root).as_posix()


@dataclass(frozen=True)
class DrawnWorld(ABC):
    """A data set that is drawn row by row.

    Args:
        count (`int`): Images.
        seed (`int`): Seed.
    """

    count: int
    seed: int

    def write(self, folder: Path) -> None:
        """Draw the images, unless that was done before.

        Args:
            folder (`Path`): Folder of the data set.
        """
        if folder.exists():
            return
        rng = random.Random(self.seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with written_at_once(folder) as root:
            rows = [self._row(root, f"{index:05d}.png", rng) for index in range(self.count)]
            (root / TABLE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    @abstractmethod
    def _row(self, root: Path, name: str, rng: random.Random) -> dict[str, Any]:
        """Draw a row's images into a folder, under a name, and return the row."""
