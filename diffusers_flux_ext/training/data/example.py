"""A data set to try training with, drawn from the world of shapes: no download, no licence to read."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ... import flux_shapes
from ...checkpoints.writing import written_at_once
from ...flux_shapes.sampling import FREE_RADII


FILE_COLUMNS = ("image", "eligen_entity_masks", "controlnet_image", "kontext_images")
"""Columns of files of the example data."""

SAME_FILES = {
    "flex_control_image": "controlnet_image",
    "flex_inpaint_image": "image",
    "flux_fill_image": "image",
    "flux_redux_image": "image",
    "infinityou_id_image": "image",
    "ipadapter_images": "image",
    "nexus_gen_reference_image": "kontext_images",
    "step1x_reference_image": "kontext_images",
}
"""Further columns of the reference implementation, and those whose files they name again."""

_TEXT_COLUMNS = ("image", "prompt", "controlnet_image", "kontext_images", "value_controller_inputs")


def write_example_data(
    folder: str | os.PathLike[str],
    count: int = 32,
    seed: int = 0,
    shapes: Sequence[str] = flux_shapes.ALL_SHAPES,
    styles: Sequence[str] = ("plain",),
    brightness: tuple[float, float] | None = None,
    objects: Sequence[int] = (1, 2, 3),
) -> Path:
    """Write images of shapes with all that the conditions are trained from, in the reference's format.

    `metadata.json` has the columns `image`, `prompt`, `eligen_entity_prompts` and `eligen_entity_masks` (the objects
    and their boxes), `controlnet_image` (outlines), `kontext_images` (the scene without its last object, at full
    brightness) and `value_controller_inputs` (the brightness if there is a range of it, else the size of the first
    object, from 0 to 1). The columns of the other methods, such as `flux_fill_image`, name these files again;
    `flux_fill_mask` and `flex_inpaint_mask` are the last object's. `metadata.csv` has the columns of one value among
    the first.

    By default nothing is drawn that the embedded tiny model cannot show: its VAE loses stripes in two shades of a
    colour, and changes the colours of dark images.

    Args:
        folder (`str` or `os.PathLike`): A new folder.
        count (`int`, defaults to 32): Number of images.
        seed (`int`, defaults to 0): The same seed gives the same files.
        shapes (`Sequence[str]`): Shapes of the objects.
        styles (`Sequence[str]`, defaults to `("plain",)`): Their styles.
        brightness (`tuple[float, float]`, *optional*): Range of the images' brightness; 1 by default.
        objects (`Sequence[int]`): Numbers of objects, which images take in turn.

    Returns:
        `Path`: the file `metadata.json`.

    Raises:
        ValueError: if `count` is not positive, or there is something at `folder` already.
        OSError: if it cannot be written.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    target = Path(folder)
    if target.exists():
        raise ValueError(f"`{folder}` exists already. Give the name of a new folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    with written_at_once(target) as root:
        rows = []
        for index in range(count):
            scene = flux_shapes.sample_free_scene(
                rng, objects[index % len(objects)], False, shapes, styles, brightness
            )
            value = _size(scene) if brightness is None else scene.brightness
            rows.append(_write_sample(root, f"{index:05d}", scene, flux_shapes.caption(scene, rng), value))
        (root / "metadata.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _TEXT_COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return target / "metadata.json"


def _size(scene: flux_shapes.Scene) -> float:
    low, high = min(FREE_RADII.values())[0], max(high for _, high in FREE_RADII.values())
    return (scene.objects[0].radius - low) / (high - low)


def _write_sample(root: Path, name: str, scene: flux_shapes.Scene, prompt: str, value: float) -> dict[str, Any]:
    masks = {f"masks/{name}_{index}.png": mask for index, mask in enumerate(flux_shapes.entity_masks(scene))}
    image, control, reference = (f"{kind}/{name}.png" for kind in ("images", "outlines", "references"))
    drawn = {
        image: flux_shapes.render(scene),
        control: flux_shapes.render_outlines(scene),
        reference: _without_last(scene),
        **masks,
    }
    for path, drawing in drawn.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        drawing.save(root / path)
    row = {
        "image": image,
        "prompt": prompt,
        "eligen_entity_prompts": flux_shapes.entity_prompts(scene),
        "eligen_entity_masks": list(masks),
        "controlnet_image": control,
        "kontext_images": reference,
        "value_controller_inputs": round(value, 3),
    }
    last = list(masks)[-1]
    again = {name: row[column] for name, column in SAME_FILES.items()}
    return {**row, **again, "flux_fill_mask": last, "flex_inpaint_mask": last}


def _without_last(scene: flux_shapes.Scene) -> Image.Image:
    rest = flux_shapes.Scene(scene.background, scene.objects[:-1]) if len(scene.objects) > 1 else None
    if rest is not None:
        return flux_shapes.render(rest)
    size = flux_shapes.CANVAS_SIZE
    return Image.new("RGB", (size, size), flux_shapes.BACKGROUNDS[scene.background])
