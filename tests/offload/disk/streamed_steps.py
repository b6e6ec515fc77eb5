"""Prints the resident memory before, the size of the streamed blocks, and the resident memory after each of 20 steps.

Run in a process of its own: `python -m tests.offload.disk.streamed_steps FOLDER`, with `budget` after it for a VRAM
budget of a quarter of the blocks.
"""

import sys
from pathlib import Path

import psutil
import torch

from diffusers_flux_ext import apply_vram_plan, plan_vram, stream_from_disk
from diffusers_flux_ext.offload.budget import estimate, planner
from tests.fixtures.towers import Tower, saved_tower


def main() -> None:
    """Stream a tower of twelve blocks of 4 MiB from a meta module."""
    torch.set_num_threads(1)
    _, path, x, _ = saved_tower(Path(sys.argv[1]), depth=12, width=512, hidden=1024)
    tower = Tower(12, 512, 1024).to("meta")
    process = psutil.Process()
    sys.stdout.write(f"{process.memory_info().rss} {12 * 2 * 512 * 1024 * 4}\n")
    stream_from_disk(tower, path)
    if sys.argv[2:] == ["budget"]:
        planner.MARGIN_BYTES = estimate.ASSUMED_BYTES = 2**20
        modules = {"tower": tower}
        apply_vram_plan(modules, plan_vram(modules, 20 * 2**20 / 2**30), "cpu")
    with torch.no_grad():
        for _ in range(20):
            x = tower(x) / 4
            sys.stdout.write(f"{process.memory_info().rss}\n")


if __name__ == "__main__":
    main()
