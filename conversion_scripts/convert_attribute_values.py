"""Join published value encoders of AttriCtrl into a folder for `AttributeValueEncoder.from_pretrained`.

    python conversion_scripts/convert_attribute_values.py models/brightness.safetensors attributes
    python conversion_scripts/convert_attribute_values.py models/brightness.safetensors models/detail.safetensors both

Every file is one attribute, named by the file.
"""

import argparse
import sys
from pathlib import Path

from diffusers_flux_ext import AttributeValueEncoder
from diffusers_flux_ext.checkpoints.converting import save_to_folder


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="a safetensors file for each attribute")
    parser.add_argument("target", type=Path, help="a new folder")
    args = parser.parse_args(arguments)
    files = {path.stem: path for path in args.sources}
    return save_to_folder(lambda: AttributeValueEncoder.from_single_file(files), args.target)


if __name__ == "__main__":
    sys.exit(main())
