"""Prints the resident memory before, the size of the streamed blocks, and the resident memory after each of 20 steps.

Run in a process of its own: `python -m tests.offload.disk.streamed_steps FOLDER`.
"""

import sys
from pathlib import Path

import psutil
import torch

from diffusers_flux_ext import stream_from_disk
from tests.fixtures.towers import Tower, saved_tower


def main() -> None:
    """Stream a tower of twelve blocks of 4 MiB from a meta module."""
    torch.set_num_threads(1)
    _, path, x, _ = saved_tower(Path(sys.argv[1]), depth=12, width=512, hidden=1024)
    tower = Tower(12, 512, 1024).to("meta")
    process = psutil.Process()
    sys.stdout.write(f"{process.memory_info().rss} {12 * 2 * 512 * 1024 * 4}\n")
    stream_from_disk(tower, path)
    with torch.no_grad():
        for _ in range(20):
            x = tower(x) / 4
            sys.stdout.write(f"{process.memory_info().rss}\n")


if __name__ == "__main__":
    main()
