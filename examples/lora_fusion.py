"""LoRAs added up, and under the gates of LoRA-Fusion.

python examples/lora_fusion.py --fusion model.safetensors --lora cat.safetensors paper_cut.safetensors
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import make_image_grid
from PIL import Image

from diffusers_flux_ext import FluxConditionedPipeline, FluxLoRAFusion, enable_lora_fusion, load_lora


def main() -> None:
    """Draw the prompt with the LoRAs added up and with the gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--fusion", required=True, help="model.safetensors, or a folder of `from_pretrained`")
    parser.add_argument("--lora", nargs="+", required=True, help="LoRAs in any format")
    parser.add_argument("--weights", type=float, nargs="+", help="one per LoRA, 1 by default")
    parser.add_argument("--prompt", default="a cat")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("lora_fusion.png"))
    add_vram(parser)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    load = FluxLoRAFusion.from_pretrained if Path(args.fusion).is_dir() else FluxLoRAFusion.from_single_file
    fusion = load(args.fusion, torch_dtype=dtype).to(device)
    pipe = FluxConditionedPipeline.from_pretrained(args.model, dtype=dtype)
    for lora, weight in zip(args.lora, args.weights or [1.0] * len(args.lora), strict=True):
        load_lora(pipe, lora, weight=weight)
    place(pipe, args.vram, height=args.size, width=args.size)

    def draw() -> Image.Image:
        generator = torch.Generator().manual_seed(0)
        size = {"height": args.size, "width": args.size}
        return pipe(args.prompt, num_inference_steps=args.steps, generator=generator, **size).images[0]

    images = [draw()]
    enable_lora_fusion(pipe, fusion)
    images.append(draw())
    make_image_grid(images, rows=1, cols=2).save(args.out)


if __name__ == "__main__":
    main()
