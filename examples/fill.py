"""Fill a hole with FLUX.1-Fill, with an entity inside it if one is named.

python examples/fill.py room.png mask.png --prompt "a sunny room" --entity "a black cat"
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import load_image

from diffusers_flux_ext import EntityRegions, FillMask, FluxCondition, FluxConditionedPipeline


def main() -> None:
    """Draw one image of the size of the given one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="the image")
    parser.add_argument("mask", help="white is drawn")
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-Fill-dev", help="repository or folder")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--entity", help="what stands in the hole; needs an EliGen LoRA to be followed well")
    parser.add_argument("--lora", help="EliGen LoRA")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("fill.png"))
    add_vram(parser)
    args = parser.parse_args()

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = FluxConditionedPipeline.from_pretrained(args.model, dtype=dtype)
    if args.lora:
        pipe.load_lora_weights(args.lora)
    place(pipe, args.vram)
    image, mask = load_image(args.image), load_image(args.mask)
    conditions: list[FluxCondition] = [FillMask(image, mask)]
    if args.entity:
        conditions.append(EntityRegions([args.entity], [mask]))
    image = pipe(
        args.prompt,
        conditions=conditions,
        height=image.height,
        width=image.width,
        guidance_scale=30.0,
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
