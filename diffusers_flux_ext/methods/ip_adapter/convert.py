"""Convert a published FLUX.1 IP-Adapter into a folder for `FluxIPAdapter.from_pretrained`.

    flux-ext convert ip-adapter ip-adapter.bin ip-adapter-instantx
    flux-ext convert ip-adapter flux-ip-adapter.safetensors ip-adapter-xlabs --dtype bfloat16

The layouts of InstantX, XLabs, diffusers and DiffSynth-Studio are told apart by their structure.
"""

from pathlib import Path

import torch

from ...checkpoints.converting import command_parser, save_to_folder
from .model import FluxIPAdapter


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = command_parser("ip-adapter", __doc__)
    parser.add_argument("source", type=Path, help="ip-adapter.bin or a safetensors file")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the result (default: that of the file)")
    parser.add_argument("--attention-head-dim", type=int, default=128, help="width of the transformer's heads")
    args = parser.parse_args(arguments)
    options = {"dtype": DTYPES.get(args.dtype), "attention_head_dim": args.attention_head_dim}
    return save_to_folder(lambda: FluxIPAdapter.from_single_file(args.source, **options), args.target)
