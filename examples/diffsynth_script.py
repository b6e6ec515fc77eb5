"""A script as it is written for DiffSynth-Studio, with another import: with the embedded tiny model, or FLUX.1-dev.

python examples/diffsynth_script.py
python examples/diffsynth_script.py --models ./models --lora lora.safetensors --prompt "a cat on a sofa"
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from diffusers_flux_ext import tiny_flux_path
from diffusers_flux_ext.diffsynth import FluxImagePipeline, ModelConfig


FILES = ("flux1-dev.safetensors", "text_encoder/model.safetensors", "text_encoder_2/*.safetensors", "ae.safetensors")
TINY: dict[str, Any] = {"height": 128, "width": 128, "t5_sequence_length": 32, "sigma_shift": 1.0}


def main() -> None:
    """Load the models and draw one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="folder of downloads, or a new one for them; the tiny model by default")
    parser.add_argument("--lora", help="a LoRA of any format")
    parser.add_argument("--prompt", default="a red circle and a blue star on a white background")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vram", type=float, help="GiB of the card to use; all by default")
    parser.add_argument("--out", type=Path, default=Path("diffsynth_script.png"))
    args = parser.parse_args()

    dtype = torch.bfloat16 if args.models else torch.float32
    limits: dict[str, Any] = {} if args.vram is None else {"offload_device": "cpu", "offload_dtype": dtype}
    tokenizers: dict[str, Any] = {}
    if args.models:
        source: dict[str, Any] = {"model_id": "black-forest-labs/FLUX.1-dev", "local_model_path": args.models}
        configs = [ModelConfig(origin_file_pattern=name, **source, **limits) for name in FILES]
        for number, folder in enumerate(("tokenizer/", "tokenizer_2/"), start=1):
            tokenizers[f"tokenizer_{number}_config"] = ModelConfig(origin_file_pattern=folder, **source)
    else:
        configs = [ModelConfig(path=tiny_flux_path(), **limits)]
    pipe = FluxImagePipeline.from_pretrained(
        torch_dtype=dtype, model_configs=configs, vram_limit=args.vram, **tokenizers
    )
    if args.lora:
        pipe.load_lora(pipe.dit, args.lora, alpha=1)
    call = {} if args.models else TINY
    image = pipe(prompt=args.prompt, num_inference_steps=args.steps, seed=args.seed, **call)
    image.save(args.out)


if __name__ == "__main__":
    main()
