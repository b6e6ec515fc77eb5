"""Convert the published LoRA-Encoder into a folder for `FluxLoRAEncoder.from_pretrained`.

flux-ext convert lora-encoder LoRA-Encoder-FLUX.1-Dev/model.safetensors lora-encoder
"""

from pathlib import Path

from ...checkpoints.converting import command_parser, save_to_folder
from .model import FluxLoRAEncoder


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = command_parser("lora-encoder", __doc__)
    parser.add_argument("source", type=Path, help="model.safetensors")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--num-attention-heads", type=int, default=32, help="heads of the encoder's attention")
    args = parser.parse_args(arguments)
    heads = args.num_attention_heads
    return save_to_folder(
        lambda: FluxLoRAEncoder.from_single_file(args.source, num_attention_heads=heads), args.target
    )
