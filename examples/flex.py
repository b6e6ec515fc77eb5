"""Control, inpainting, both or neither with Flex.2.

python examples/flex.py --prompt "a fox in a forest" --control depth.png
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import load_image

from diffusers_flux_ext import FluxFlexPipeline


def main() -> None:
    """Draw one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ostris/Flex.2-preview", help="repository or folder")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--image", help="image to redraw a part of")
    parser.add_argument("--mask", help="white is redrawn")
    parser.add_argument("--control", help="control image")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("flex.png"))
    add_vram(parser)
    args = parser.parse_args()

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = FluxFlexPipeline.from_pretrained(args.model, dtype=dtype)
    place(pipe, args.vram, height=args.size[0], width=args.size[1])
    image, mask, control = (load_image(given) if given else None for given in (args.image, args.mask, args.control))
    image = pipe(
        args.prompt,
        inpaint_image=image,
        inpaint_mask=mask,
        control_image=control,
        height=args.size[0],
        width=args.size[1],
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
