"""Train the small modules of diffusers_flux_ext/assets and write them there, in bfloat16.

python -m benchmarks.training.ship --work proofs
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from diffusers import FluxControlNetModel
from diffusers.utils import logging

from benchmarks.training.runner import Variant, train
from benchmarks.training.shipped import ASSETS, FILE, FOLDERS, LORAS
from benchmarks.training.worlds import write_worlds
from diffusers_flux_ext import AttributeValueEncoder
from diffusers_flux_ext.checkpoints.writing import written_at_once


CLASSES = {"controlnet": FluxControlNetModel, "encoder": AttributeValueEncoder}


def ship(work: Path, assets: Path) -> list[Path]:
    """Train what is not trained yet, and write the modules.

    Args:
        work (`Path`): Folder of data and checkpoints.
        assets (`Path`): Where they go.

    Returns:
        `list[Path]`: files and folders.
    """
    work.mkdir(parents=True, exist_ok=True)
    write_worlds(work / "worlds", ("outlines", "singles", "stripes", "sizes"))
    names = ("tiny_controlnet", "tiny_controlnet_single", "tiny_style_lora", "tiny_size")
    results = {name: work / train(work, Variant(name, name)) for name in names}
    written = []
    for name, file in LORAS.items():
        with written_at_once(assets / file) as path:
            shutil.copyfile(results[name] / FILE, path)
        written.append(assets / file)
    for (name, part), folder in FOLDERS.items():
        module = CLASSES[part].from_pretrained(results[name] / part).to(torch.bfloat16)
        module.save_pretrained(assets / folder)
        written.append(assets / folder)
    return written


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description="Train the small modules of the package.")
    parser.add_argument("--work", type=Path, default=Path("proofs"), help="folder of data and checkpoints")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    for path in ship(arguments.work.resolve(), ASSETS):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
