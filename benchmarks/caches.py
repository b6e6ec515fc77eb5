"""Error, skipped steps and time of caches against uncached calls of the embedded tiny model.

Run from the repository's root:

    python -m benchmarks.caches --steps 28 --prompts 6
"""

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from diffusers.utils import logging

from benchmarks.cache_table import enabled, psnr
from diffusers_flux_ext import FluxConditionedPipeline, TeaCacheConfig, tiny_flux_path


PROMPTS = (
    "a small red star on the left, blue background",
    "a large green circle, white background",
    "a blue square on the right, gray background",
    "a yellow triangle, black background",
    "a large purple star, white background",
    "a small orange circle on the left, black background",
)


def make_caches(pipe: Any, steps: int) -> dict[str, Any]:
    """Return the configs by the names of the table."""
    every_other = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (100, 950),
        "current_timestep_callback": lambda: pipe.current_timestep,
    }
    return {
        **{f"TeaCache {value}": TeaCacheConfig(value) for value in (0.25, 0.4, 0.6, 0.8)},
        **{f"first block {value}": FirstBlockCacheConfig(value) for value in (0.1, 0.2)},
        "MagCache 0.06, FLUX.1's ratios": MagCacheConfig(num_inference_steps=steps, mag_ratios=FLUX_MAG_RATIOS),
        "TaylorSeer, every 3rd": TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=torch.float32),
        "PAB, every 2nd": PyramidAttentionBroadcastConfig(**every_other),
    }


def draw(pipe: Any, prompt: str, steps: int) -> tuple[torch.Tensor, int, float]:
    """Return the image, how often the last block's attention ran, and the processor seconds."""
    runs: list[int] = []
    layer = pipe.transformer.single_transformer_blocks[-1].attn.to_q
    handle = layer.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    size = {"height": 128, "width": 128, "max_sequence_length": 32, "output_type": "pt"}
    start = time.process_time()
    images = pipe(prompt, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **size).images
    seconds = time.process_time() - start
    handle.remove()
    return images, len(runs), seconds


def measure(pipe: Any, config: Any, prompts: tuple[str, ...], steps: int) -> tuple[float, float, float]:
    """Return mean skipped steps, mean PSNR, and the median of the ratios of times of runs next to each other."""
    skipped, errors, ratios = [], [], []
    for prompt in prompts:
        exact, _, plain = draw(pipe, prompt, steps)
        with enabled(pipe, config):
            images, runs, seconds = draw(pipe, prompt, steps)
        skipped.append(steps - runs)
        errors.append(psnr(images, exact))
        ratios.append(plain / seconds)
    return statistics.mean(skipped), statistics.mean(errors), statistics.median(ratios)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help=f"how many, up to {len(PROMPTS)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    pipe = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, PROMPTS[0], args.steps)
    sys.stdout.write(f"| cache | skipped of {args.steps} | PSNR, dB | times as fast |\n|---|---|---|---|\n")
    for name, config in make_caches(pipe, args.steps).items():
        skipped, error, ratio = measure(pipe, config, PROMPTS[: args.prompts], args.steps)
        sys.stdout.write(f"| {name} | {skipped:.1f} | {error:.1f} | {ratio:.2f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
