"""Convert a published FLUX.1 IP-Adapter into a folder for `FluxIPAdapter.from_pretrained`.

    python conversion_scripts/convert_ip_adapter.py ip-adapter.bin ip-adapter-instantx
    python conversion_scripts/convert_ip_adapter.py flux-ip-adapter.safetensors ip-adapter-xlabs --dtype bfloat16

The layouts of InstantX, XLabs, diffusers and DiffSynth-Studio are told apart by their structure.
"""

import argparse
import sys
from pathlib import Path

import torch

from diffusers_flux_ext import FluxIPAdapter
from diffusers_flux_ext.checkpoints.converting import save_to_folder


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="ip-adapter.bin or a safetensors file")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the result (default: that of the file)")
    parser.add_argument("--attention-head-dim", type=int, default=128, help="width of the transformer's heads")
    args = parser.parse_args(arguments)
    options = {"dtype": DTYPES.get(args.dtype), "attention_head_dim": args.attention_head_dim}
    return save_to_folder(lambda: FluxIPAdapter.from_single_file(args.source, **options), args.target)


if __name__ == "__main__":
    sys.exit(main())
