"""Convert a FLUX.1 transformer between the diffusers, Black Forest Labs and DiffSynth-Studio key layouts.

    python conversion_scripts/convert_transformer.py flux1-dev.safetensors dev-diffsynth.safetensors --to diffsynth
    python conversion_scripts/convert_transformer.py Flex.2-preview.safetensors flex2/transformer

A target with the ending `.safetensors` becomes one file; any other becomes a folder for `from_pretrained`.
"""

import argparse
import os
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from diffusers_flux_ext import FluxExtTransformer2DModel
from diffusers_flux_ext.loaders.checkpoint_formats import LAYOUTS, convert_transformer_state_dict


def convert_to_file(source: Path, target: Path, layout: str) -> None:
    """Write one file, under a temporary name until it is complete."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(convert_transformer_state_dict(load_file(source), to=layout), temporary, metadata={"format": "pt"})
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def convert_to_folder(source: Path, target: Path, axes: list[int] | None) -> None:
    """Write a folder in diffusers' layout, under a temporary name until it is complete."""
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or remove it first.")
    overrides = {"axes_dims_rope": tuple(axes)} if axes else {}
    model = FluxExtTransformer2DModel.from_single_file(source, **overrides)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    model.save_pretrained(temporary)
    temporary.replace(target)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="safetensors file in any of the three layouts")
    parser.add_argument("target", type=Path, help="a .safetensors file, or a new folder")
    parser.add_argument("--to", choices=LAYOUTS, help="layout of a target file (default: diffusers)")
    parser.add_argument("--axes-dims-rope", type=int, nargs=3, help="rotary axes, for heads that are not 128 wide")
    args = parser.parse_args(arguments)
    is_file = args.target.suffix in (".safetensors", ".sft")
    if args.to and not is_file:
        parser.error("--to is for a target file; a folder is always in diffusers' layout")
    try:
        if is_file:
            convert_to_file(args.source, args.target, args.to or "diffusers")
        else:
            convert_to_folder(args.source, args.target, args.axes_dims_rope)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
