"""The data sets of the proofs: drawn shapes, one world for each thing that is learnt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.checkpoints.writing import written_at_once
from diffusers_flux_ext.training.data import write_example_data


TABLE = "train.json"
"""The rows that are trained on, beside the images."""


@dataclass(frozen=True)
class World:
    """A data set.

    Args:
        count (`int`): Images that are drawn.
        seed (`int`): Seed.
        objects (`tuple[int, ...]`): Only images with so many objects are trained on.
        shapes (`tuple[str, ...]`): Shapes of the objects.
        style (`str`): Their style; captions do not name it, so that it is learnt without a word for it.
        brightness (`tuple[float, float]`, *optional*): Range of the images' brightness.
    """

    count: int
    seed: int
    objects: tuple[int, ...] = (1,)
    shapes: tuple[str, ...] = flux_shapes.SHAPES
    style: str = "plain"
    brightness: tuple[float, float] | None = None

    def write(self, folder: Path) -> Path:
        """Draw the images, unless that was done before.

        Args:
            folder (`Path`): Folder of the data set.

        Returns:
            `Path`: the table.
        """
        if not folder.exists():
            write_example_data(folder, self.count, self.seed, self.shapes, (self.style,), self.brightness)
        table = folder / TABLE
        if not table.exists():
            rows = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
            kept = [self._row(row) for row in rows if len(row["eligen_entity_prompts"]) in self.objects]
            with written_at_once(table) as path:
                path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        return table

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        word = f"{self.style} "
        prompts = [text.replace(word, "") for text in row["eligen_entity_prompts"]]
        return {**row, "prompt": row["prompt"].replace(word, ""), "eligen_entity_prompts": prompts}


WORLDS = {
    "outlines": World(960, 11, objects=(1, 2, 3)),
    "stripes": World(1200, 12, style="striped"),
    "brightness": World(1800, 13, brightness=(0.3, 1.0)),
    "crosses": World(1500, 14, shapes=("cross",)),
    "old_shapes": World(1500, 15),
    "entities": World(3000, 16, objects=(1, 2, 3)),
}
"""The data sets by name."""


def write_worlds(folder: Path, names: tuple[str, ...] = tuple(WORLDS)) -> None:
    """Draw data sets into folders of their names.

    Args:
        folder (`Path`): Where they go.
        names (`tuple[str, ...]`): Which.
    """
    for name in names:
        WORLDS[name].write(folder / name)
