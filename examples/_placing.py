"""Where the examples put the weights: under a VRAM budget with `--vram`, otherwise on the card model by model."""

import argparse
import sys
from typing import Any

import torch


def add_vram(parser: argparse.ArgumentParser) -> None:
    """Add `--vram` to an example's arguments."""
    parser.add_argument("--vram", type=float, metavar="GIB", help="keep every call within this much of the card")


def place(pipe: Any, vram: float | None, **planned: Any) -> bool:
    """Keep a pipeline under a budget and print its plan; without one, offload model by model where there is a card.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        vram (`float`, *optional*): The budget in GiB.
        planned: What is known of the calls, such as `height`, `width` and `conditions`.

    Returns:
        `bool`: whether there is a budget.
    """
    if vram is not None:
        sys.stdout.write(f"{pipe.enable_vram_budget(vram, **planned)}\n")
    elif torch.cuda.is_available():
        pipe.enable_model_cpu_offload()
    return vram is not None
