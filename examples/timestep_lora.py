"""A timestep LoRA at several strengths; 2 is the published one.

python examples/timestep_lora.py --lora MultiAlign-FLUX.1-dev/adapter_model.safetensors
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import make_image_grid

from diffusers_flux_ext import FluxConditionedPipeline, load_timestep_lora


def main() -> None:
    """Draw the prompt at every strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--lora", required=True, help="adapter_model.safetensors")
    parser.add_argument("--prompt", default="a moonlit canal in Venice with a gondola on the left")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("timestep_lora.png"))
    add_vram(parser)
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    pipe = FluxConditionedPipeline.from_pretrained(args.model, dtype=dtype)
    load_timestep_lora(pipe, args.lora, "timed")
    place(pipe, args.vram, height=args.size, width=args.size)
    images = []
    for strength in args.strengths:
        pipe.set_adapters("timed", strength)
        generator = torch.Generator().manual_seed(0)
        size = {"height": args.size, "width": args.size}
        images += pipe(args.prompt, num_inference_steps=args.steps, generator=generator, **size).images
    make_image_grid(images, rows=1, cols=len(images)).save(args.out)


if __name__ == "__main__":
    main()
