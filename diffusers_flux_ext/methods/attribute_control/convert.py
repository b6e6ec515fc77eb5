"""Join published value encoders of AttriCtrl into a folder for `AttributeValueEncoder.from_pretrained`.

    flux-ext convert attribute-control models/brightness.safetensors attributes
    flux-ext convert attribute-control models/brightness.safetensors models/detail.safetensors both

Every file holds one attribute and names it.
"""

from pathlib import Path

from ...checkpoints.converting import command_parser, save_to_folder
from .encoder import AttributeValueEncoder


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = command_parser("attribute-control", __doc__)
    parser.add_argument("sources", type=Path, nargs="+", help="a safetensors file for each attribute")
    parser.add_argument("target", type=Path, help="a new folder")
    args = parser.parse_args(arguments)
    files = {path.stem: path for path in args.sources}
    return save_to_folder(lambda: AttributeValueEncoder.from_single_file(files), args.target)
