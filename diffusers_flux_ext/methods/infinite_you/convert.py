"""Convert a published variant of InfiniteYou into folders for `from_pretrained`.

    flux-ext convert infinite-you InfiniteYou/infu_flux_v1.0/aes_stage2 infinite-you-aes

The source holds `InfuseNetModel` (a folder in diffusers' layout) and `image_proj_model.bin`; the target gets
`controlnet` and `image_projector`, which `FluxControlNetModel` and `InfiniteYouImageProjector` load.
"""

import shutil
from pathlib import Path

from ...checkpoints.converting import command_parser, reported
from ...checkpoints.writing import check_target, written_at_once
from .projector import InfiniteYouImageProjector


def convert(source: Path, target: Path, dim_head: int) -> None:
    """Write the target under a temporary name until it is complete."""
    check_target(target)
    infusenet = source / "InfuseNetModel"
    if not (infusenet / "config.json").is_file():
        raise ValueError(f"{infusenet} is not a folder of a ControlNet in diffusers' layout: it has no config.json.")
    projector = InfiniteYouImageProjector.from_single_file(source / "image_proj_model.bin", dim_head=dim_head)
    with written_at_once(target, overwrite=False) as temporary:
        projector.save_pretrained(temporary / "image_projector")
        shutil.copytree(infusenet, temporary / "controlnet")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = command_parser("infinite-you", __doc__)
    parser.add_argument("source", type=Path, help="folder of one variant, such as infu_flux_v1.0/sim_stage1")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--dim-head", type=int, default=64, help="width of the projector's heads")
    args = parser.parse_args(arguments)
    return reported(lambda: convert(args.source, args.target, args.dim_head))
