"""A LoRA with and without its own token in the prompt.

python examples/lora_encoder.py --encoder LoRA-Encoder-FLUX.1-Dev/model.safetensors --lora style.safetensors
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import make_image_grid

from diffusers_flux_ext import FluxLoRAEncoder, FluxLoRAEncoderPipeline


def main() -> None:
    """Draw the prompt with the loaded LoRA at several strengths of its embedding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--encoder", required=True, help="model.safetensors, or a folder of `from_pretrained`")
    parser.add_argument("--lora", required=True, help="a LoRA in any format")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("lora_encoder.png"))
    add_vram(parser)
    args = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    load = FluxLoRAEncoder.from_pretrained if Path(args.encoder).is_dir() else FluxLoRAEncoder.from_single_file
    encoder = load(args.encoder, torch_dtype=dtype)
    pipe = FluxLoRAEncoderPipeline.from_pretrained(args.model, lora_encoder=encoder, dtype=dtype)
    pipe.load_lora_weights(args.lora)
    place(pipe, args.vram, height=args.size, width=args.size)
    images = [
        pipe(
            args.prompt,
            lora_inputs=args.lora,
            lora_embedding_scale=scale,
            height=args.size,
            width=args.size,
            num_inference_steps=args.steps,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        for scale in args.scales
    ]
    make_image_grid(images, rows=1, cols=len(images)).save(args.out)


if __name__ == "__main__":
    main()
