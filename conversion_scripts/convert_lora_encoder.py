"""Convert the published LoRA-Encoder into a folder for `FluxLoRAEncoder.from_pretrained`.

python conversion_scripts/convert_lora_encoder.py LoRA-Encoder-FLUX.1-Dev/model.safetensors lora-encoder
"""

import argparse
import sys
from pathlib import Path

from diffusers_flux_ext import FluxLoRAEncoder
from diffusers_flux_ext.checkpoints.converting import save_to_folder


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="model.safetensors")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--num-attention-heads", type=int, default=32, help="heads of the encoder's attention")
    args = parser.parse_args(arguments)
    heads = args.num_attention_heads
    return save_to_folder(
        lambda: FluxLoRAEncoder.from_single_file(args.source, num_attention_heads=heads), args.target
    )


if __name__ == "__main__":
    sys.exit(main())
