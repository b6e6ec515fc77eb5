"""One image without a cache and one with it: the time of both, and how far they are apart.

python examples/caches.py --prompt "a cat on the table" --cache tea --threshold 0.25
python examples/caches.py --model tiny --prompt "a small red star on the left, blue background"
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from _placing import add_vram, place
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.utils import logging

from diffusers_flux_ext import FluxConditionedPipeline, TeaCacheConfig, apply_tea_cache, tiny_flux_path


logging.set_verbosity_info()
logger = logging.get_logger("diffusers.caches")


def enable(pipe: Any, cache: str, threshold: float) -> None:
    """Let the pipeline's transformer run with a cache."""
    if cache == "tea":
        apply_tea_cache(pipe.transformer, TeaCacheConfig(threshold))
    elif cache == "first-block":
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold))
    else:
        pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=3))


def main() -> None:
    """Draw twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository, folder, or `tiny`")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--cache", choices=["tea", "first-block", "taylorseer"], default="tea")
    parser.add_argument("--threshold", type=float, default=0.25, help="of TeaCache and the first-block cache")
    parser.add_argument("--size", type=int, help="side in pixels; 1024, or 128 for `tiny`")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("cached.png"))
    add_vram(parser)
    args = parser.parse_args()

    tiny = args.model == "tiny"
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = FluxConditionedPipeline.from_pretrained(tiny_flux_path() if tiny else args.model, dtype=dtype)
    place(pipe, args.vram)
    size = args.size or (128 if tiny else 1024)
    images = []
    for cached in (False, True):
        if cached:
            enable(pipe, args.cache, args.threshold)
        start = time.perf_counter()
        images.append(
            pipe(
                args.prompt,
                height=size,
                width=size,
                num_inference_steps=args.steps,
                max_sequence_length=32 if tiny else 512,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
        )
        logger.info(f"{'with' if cached else 'without'} the cache: {time.perf_counter() - start:.2f} s")
    error = (images[0].float() - images[1].float()).square().mean()
    logger.info(f"PSNR: {-10 * error.log10().item():.1f} dB")
    both = torch.cat(images, dim=3).cpu()
    pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(both))[0].save(args.out)


if __name__ == "__main__":
    main()
