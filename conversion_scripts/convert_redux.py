"""Write Redux' embedder as a folder for `diffusers.ReduxImageEncoder.from_pretrained`.

python conversion_scripts/convert_redux.py flux1-redux-dev.safetensors image_embedder
"""

import argparse
import sys
from pathlib import Path

from diffusers_flux_ext import load_redux_embedder
from diffusers_flux_ext.checkpoints.converting import save_to_folder


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a file of `redux_up.*` and `redux_down.*`, or a folder with one")
    parser.add_argument("target", type=Path, help="a new folder")
    args = parser.parse_args(arguments)
    return save_to_folder(lambda: load_redux_embedder(args.source), args.target)


if __name__ == "__main__":
    sys.exit(main())
