"""Two ControlNets, one for each half of the image, with group offloading.

python examples/controlnet.py --left depth.png --left-mode depth --right pose.png --right-mode pose
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.hooks import apply_group_offloading
from diffusers.utils import load_image

from diffusers_flux_ext import ControlNetImage, FluxConditionedPipeline, FluxExtControlNetModel


LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def main() -> None:
    """Draw one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--controlnet", default="Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro")
    parser.add_argument("--prompt", default="a fox and a dancer in a forest")
    parser.add_argument("--left", required=True, help="control image of the left half")
    parser.add_argument("--left-mode", default="depth")
    parser.add_argument("--right", required=True, help="control image of the right half")
    parser.add_argument("--right-mode", default="pose")
    parser.add_argument("--scale", type=float, default=0.6)
    parser.add_argument("--end", type=float, default=0.7, help="fraction of the steps")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("controlnet.png"))
    add_vram(parser)
    args = parser.parse_args()

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = FluxConditionedPipeline.from_pretrained(args.model, dtype=dtype)
    controlnet = FluxExtControlNetModel.from_pretrained(args.controlnet, torch_dtype=dtype)
    if torch.cuda.is_available() and args.vram is None:
        offload = {"onload_device": torch.device("cuda"), "offload_type": "block_level", "num_blocks_per_group": 1}
        for module in (pipe.transformer, controlnet, pipe.text_encoder_2):
            apply_group_offloading(module, use_stream=True, **offload)
        pipe.text_encoder.to("cuda")
        pipe.vae.to("cuda")
    union = controlnet.union
    conditions = [
        ControlNetImage(
            controlnet,
            load_image(image),
            args.scale,
            end=args.end,
            mode=mode if union else None,
            region=region,
        )
        for image, mode, region in ((args.left, args.left_mode, LEFT), (args.right, args.right_mode, RIGHT))
    ]
    if args.vram is not None:
        place(pipe, args.vram, conditions=conditions, height=args.size[0], width=args.size[1])
    image = pipe(
        args.prompt,
        conditions=conditions,
        height=args.size[0],
        width=args.size[1],
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
