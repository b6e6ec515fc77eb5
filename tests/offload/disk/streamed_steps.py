"""Prints, for two ways of streaming, the memory before, the size of the blocks, and the memory after each of 20 steps.

Run in a process of its own: `python -m tests.offload.disk.streamed_steps FOLDER`. Each way is a line and a fork, since
the imports take most of the time; the second is a VRAM budget of a quarter of the blocks.
"""

import os
import sys
from pathlib import Path

import psutil
import torch

from diffusers_flux_ext import apply_vram_plan, plan_vram, stream_from_disk
from diffusers_flux_ext.offload.budget import estimate, planner
from tests.fixtures.towers import Tower, saved_tower


WAYS = ("plain", "budget")


def main() -> None:
    """Stream a tower of twelve blocks of 4 MiB from a meta module."""
    torch.set_num_threads(1)
    _, path, x, _ = saved_tower(Path(sys.argv[1]), depth=12, width=512, hidden=1024)
    for way in WAYS:
        child = os.fork()
        if not child:
            sys.stdout.write(" ".join(map(str, measure(way, path, x))) + "\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


def measure(way: str, path: Path, x: torch.Tensor) -> list[int]:
    """Bytes: resident before, of the blocks, and resident after each step."""
    tower = Tower(12, 512, 1024).to("meta")
    process = psutil.Process()
    found = [process.memory_info().rss, 12 * 2 * 512 * 1024 * 4]
    stream_from_disk(tower, path)
    if way == "budget":
        planner.MARGIN_BYTES = estimate.ASSUMED_BYTES = 2**20
        modules = {"tower": tower}
        apply_vram_plan(modules, plan_vram(modules, 20 * 2**20 / 2**30), "cpu")
    with torch.no_grad():
        for _ in range(20):
            x = tower(x) / 4
            found.append(process.memory_info().rss)
    return found


if __name__ == "__main__":
    main()
