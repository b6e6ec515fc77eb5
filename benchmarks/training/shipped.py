"""The trained modules that ship with the package, by the recipe that makes them."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers_flux_ext import tiny_flux_path
from diffusers_flux_ext.checkpoints.writing import written_at_once


ASSETS = Path(tiny_flux_path()).parent
FILE = "pytorch_lora_weights.safetensors"
LORAS = {"tiny_style_lora": "tiny_flux_style_lora.safetensors", "tiny_size": "tiny_flux_size_lora.safetensors"}
FOLDERS = {
    ("tiny_controlnet_single", "controlnet"): "tiny_flux_controlnet",
    ("tiny_size", "encoder"): "tiny_flux_size_encoder",
}
BEFORE = ("tiny_controlnet",)
"""Recipes whose results do not ship, because another training went on from them."""


def lay_out(work: Path, recipe: str) -> Path:
    """Lay out what ships as a training would have exported it.

    Args:
        work (`Path`): Folder of data and checkpoints.
        recipe (`str`): Name of a configuration.

    Returns:
        `Path`: a folder; an empty one for a training that another one went on from.

    Raises:
        ValueError: if nothing that ships was made by this recipe.
    """
    if recipe not in (*LORAS, *BEFORE, *(name for name, _ in FOLDERS)):
        raise ValueError(f"Nothing that ships was made by the recipe {recipe!r}. Leave `--shipped` out to train.")
    target = work / "shipped" / recipe
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_at_once(target) as folder:
            folder.mkdir()
            if recipe in LORAS:
                shutil.copyfile(ASSETS / LORAS[recipe], folder / FILE)
            for (name, part), source in FOLDERS.items():
                if name == recipe:
                    shutil.copytree(ASSETS / source, folder / part)
    return target
