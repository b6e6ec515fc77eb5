"""Write Redux' embedder as a folder for `diffusers.ReduxImageEncoder.from_pretrained`.

flux-ext convert redux flux1-redux-dev.safetensors image_embedder
"""

from pathlib import Path

from ...checkpoints.converting import command_parser, save_to_folder
from .checkpoint import load_redux_embedder


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = command_parser("redux", __doc__)
    parser.add_argument("source", type=Path, help="a file of `redux_up.*` and `redux_down.*`, or a folder with one")
    parser.add_argument("target", type=Path, help="a new folder")
    args = parser.parse_args(arguments)
    return save_to_folder(lambda: load_redux_embedder(args.source), args.target)
