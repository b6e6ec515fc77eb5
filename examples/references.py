"""Several reference images with FLUX.1-Kontext.

python examples/references.py dog.png hat.png --prompt "the dog wears the hat"
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import load_image

from diffusers_flux_ext import FluxConditionedPipeline, ReferenceImages


def main() -> None:
    """Draw one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="reference images")
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-Kontext-dev", help="repository or folder")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--layout", choices=["index", "offset", "same"], default="index")
    parser.add_argument("--scale", type=float, nargs="+", help="one per image, from 0 to 1")
    parser.add_argument("--max-area", type=int, help="pixels of a reference at most")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("references.png"))
    add_vram(parser)
    args = parser.parse_args()

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = FluxConditionedPipeline.from_pretrained(args.model, dtype=dtype)
    place(pipe, args.vram, height=args.size[0], width=args.size[1])
    images = [load_image(image) for image in args.images]
    references = ReferenceImages(images, args.layout, args.scale, args.max_area)
    image = pipe(
        args.prompt,
        conditions=[references],
        height=args.size[0],
        width=args.size[1],
        guidance_scale=2.5,
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
