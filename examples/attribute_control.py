"""A row of images from dark to bright with AttriCtrl.

python examples/attribute_control.py --attribute brightness=models/brightness.safetensors --prompt "a cat on the beach"
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import make_image_grid

from diffusers_flux_ext import AttributeValueEncoder, FluxAttributeControlPipeline


def main() -> None:
    """Draw the first attribute at several values, the others at their middle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--attribute", action="append", required=True, help="name=file, once for each attribute")
    parser.add_argument("--prompt", default="a cat on the beach")
    parser.add_argument("--values", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("attributes.png"))
    add_vram(parser)
    args = parser.parse_args()

    files = dict(given.split("=", 1) for given in args.attribute)
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    encoder = AttributeValueEncoder.from_single_file(files, torch_dtype=dtype)
    pipe = FluxAttributeControlPipeline.from_pretrained(args.model, value_encoder=encoder, dtype=dtype)
    place(pipe, args.vram, height=args.size, width=args.size)
    first, *others = files
    images = [
        pipe(
            args.prompt,
            attribute_values={first: value, **dict.fromkeys(others, 0.5)},
            height=args.size,
            width=args.size,
            num_inference_steps=args.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        for value in args.values
    ]
    make_image_grid(images, rows=1, cols=len(images)).save(args.out)


if __name__ == "__main__":
    main()
