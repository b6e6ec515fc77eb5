"""Peak memory and time of VAE tiling: untiled, diffusers' tiling and `AutoencoderKLFlux`, on a small random VAE.

Every measurement runs in a process of its own, on one CPU thread, in float32. "Peak" is the high-water mark of the
resident memory during the call, above what was resident before it (model and input); time is processor time. Prints a
Markdown table. Linux only, because it resets the kernel's high-water mark.

    python benchmarks/vae_tiling.py --sizes 512 1024 2048 --tile 512 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


MODES = ("untiled", "diffusers", "ours")
OPERATIONS = ("encode", "decode")
CONFIG = {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8, "layers_per_block": 1}
MEBIBYTE = 2**20


def resident_bytes(field: str) -> int:
    """Return `VmRSS` (now) or `VmHWM` (the high-water mark) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux.")


def measure(mode: str, operation: str, size: int, tile: int) -> dict[str, float]:
    """Run one call in this process; return its peak memory in MiB and its processor time in seconds."""
    import torch

    from diffusers_flux_ext import AutoencoderKLFlux

    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae: Any = AutoencoderKLFlux(**CONFIG).eval()
    if mode == "diffusers":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae = AutoencoderKL(**vae.config).eval()
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // 8
        vae.enable_tiling()
    elif mode == "ours":
        vae.enable_tiling(tile)
    shape = (1, 3, size, size) if operation == "encode" else (1, 16, size // 8, size // 8)
    with torch.no_grad():
        # The first call sets up the kernels; it must not be larger than a tile.
        getattr(vae, operation)(torch.zeros(*shape[:2], 16, 16))
        sample = torch.randn(shape)
        Path("/proc/self/clear_refs").write_text("5")
        before, start = resident_bytes("VmRSS"), time.process_time()
        getattr(vae, operation)(sample)
        seconds = time.process_time() - start
    return {"peak": (resident_bytes("VmHWM") - before) / MEBIBYTE, "seconds": seconds}


def buffer_mebibytes(operation: str, size: int) -> float:
    """Return what `AutoencoderKLFlux` allocates for the whole plane: weighted sums and weights in float32."""
    cells, channels = (size * size, 3) if operation == "decode" else ((size // 8) ** 2, 32)
    return cells * (channels + 1) * 4 / MEBIBYTE


def measure_apart(mode: str, operation: str, size: int, tile: int) -> dict[str, float]:
    """Run [`measure`] in a process that returns freed memory to the system at once."""
    arguments = [sys.executable, __file__, "--measure", mode, operation, str(size), str(tile)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def table_row(operation: str, size: int, tile: int, repeats: int) -> str:
    """Return one line of the table: medians over `repeats` processes."""
    medians = {}
    for mode in MODES:
        runs = [measure_apart(mode, operation, size, tile) for _ in range(repeats)]
        medians[mode] = {key: statistics.median(run[key] for run in runs) for key in ("peak", "seconds")}
    buffers = buffer_mebibytes(operation, size)
    peaks = [f"{medians[mode]['peak']:.0f}" for mode in MODES]
    seconds = [f"{medians[mode]['seconds']:.1f}" for mode in MODES]
    activations = f"{medians['ours']['peak'] - buffers:.0f}"
    return "| " + " | ".join([operation, f"{size} x {size}", *peaks, f"{buffers:.0f}", activations, *seconds]) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048], help="sides in pixels")
    parser.add_argument("--tile", type=int, default=512, help="tile size in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each median")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        mode, operation, size, tile = options.measure
        sys.stdout.write(json.dumps(measure(mode, operation, int(size), int(tile))) + "\n")
        return
    heads = ["call", "image", *(f"{mode}, MiB" for mode in MODES), "ours: buffers", "ours: rest"]
    sys.stdout.write("| " + " | ".join([*heads, *(f"{mode}, s" for mode in MODES)]) + " |" + "\n")
    sys.stdout.write("|---|---|" + "---:|" * (len(heads) - 2 + len(MODES)) + "\n")
    for operation in OPERATIONS:
        for size in options.sizes:
            sys.stdout.write(table_row(operation, size, options.tile, options.repeats) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
