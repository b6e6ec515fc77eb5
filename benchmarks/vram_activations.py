"""The counted memory of activations against what a process takes on the CPU, at the released widths.

    python -m benchmarks.vram_activations

Each case runs in a process of its own, with an allocator that gives memory back at once, in float32.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from benchmarks.memory import peak_mib, reset_peak
from diffusers_flux_ext.methods.catalog import flux_models
from diffusers_flux_ext.offload.budget.estimate import Workload, activation_bytes


MIB = 2**20
# Text and image tokens of the transformer, or pixels of the autoencoder.
CASES: dict[str, tuple[str, int, int]] = {
    "transformer, 512 x 512": ("transformer", 512, 512),
    "transformer, 768 x 768": ("transformer", 512, 768),
    "transformer, 512 x 512, 2048 text tokens": ("transformer", 2048, 512),
    "VAE, 256 x 256": ("vae", 0, 256),
    "VAE, 512 x 512": ("vae", 0, 512),
}
# Freed memory goes back to the system at once, so that the resident set follows what lives.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def build(kind: str) -> Any:
    """Return a model of the released width with one block of each kind, and random weights in float32."""
    if kind == "transformer":
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    return AutoencoderKL.from_config(flux_models()["vae"].config)


def call_of(model: Any, kind: str, text: int, pixels: int) -> Callable[[], Any]:
    """Return one run of the model."""
    if kind == "vae":
        return lambda: model.decode(torch.randn(1, 16, pixels // 8, pixels // 8)).sample
    image = (pixels // 16) ** 2
    return lambda: model(
        hidden_states=torch.randn(1, image, 64),
        encoder_hidden_states=torch.randn(1, text, 4096),
        pooled_projections=torch.randn(1, 768),
        timestep=torch.ones(1),
        img_ids=torch.zeros(image, 3),
        txt_ids=torch.zeros(text, 3),
        guidance=torch.ones(1),
    )


def run_case(name: str) -> None:
    """Print the counted and the measured MiB of one case."""
    kind, text, pixels = CASES[name]
    torch.set_num_threads(1)
    with torch.no_grad():
        model = build(kind)
        work = Workload(pixels, pixels, text_tokens=text or 512, prompt_tokens=text or 512)
        counted = activation_bytes(model, work)[0] / MIB
        # A small run first, so that kernels and their scratch memory are there.
        call_of(model, kind, 16, 64)()
        reset_peak()
        before = peak_mib()
        call_of(model, kind, text, pixels)()
        sys.stdout.write(f"{counted:.0f} {peak_mib() - before:.0f}\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="run one case in this process")
    args = parser.parse_args()
    if args.case:
        run_case(args.case)
        return
    sys.stdout.write("| float32, CPU | counted, MiB | measured, MiB | measured / counted |\n|---|---|---|---|\n")
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.vram_activations", "--case", name]
        done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=True)
        counted, measured = map(float, done.stdout.splitlines()[-1].split())
        sys.stdout.write(f"| {name} | {counted:.0f} | {measured:.0f} | {measured / counted:.2f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
