"""Convert a published file of Step1X-Edit, version 1.0 or 1.1, into folders for `from_pretrained`.

    flux-ext convert step1x-edit step1x-edit-i1258.safetensors step1x-edit

The target gets `transformer` and `connector`, which `FluxExtTransformer2DModel` (or diffusers' own class) and
`Step1XConnector` load. VAE and scheduler are those of FLUX.1.
"""

from pathlib import Path
from typing import Any

from ...checkpoints.converting import command_parser, reported
from ...checkpoints.writing import check_target, written_at_once
from ...models.transformer_flux_ext import FluxExtTransformer2DModel
from .connector import Step1XConnector


def convert(source: Path, target: Path, axes: list[int] | None, heads: int | None) -> None:
    """Write the target under a temporary name until it is complete; one model is in memory at a time."""
    check_target(target)
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "connector": (Step1XConnector, {"num_attention_heads": heads} if heads else {}),
        "transformer": (FluxExtTransformer2DModel, {"axes_dims_rope": tuple(axes)} if axes else {}),
    }
    with written_at_once(target, overwrite=False) as temporary:
        for name, (model_class, sizes) in models.items():
            model_class.from_single_file(source, **sizes).save_pretrained(temporary / name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = command_parser("step1x-edit", __doc__)
    parser.add_argument("source", type=Path, help="the safetensors file of transformer and connector")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--axes-dims-rope", type=int, nargs=3, help="rotary axes, for heads that are not 128 wide")
    parser.add_argument("--num-attention-heads", type=int, help="the connector's, where they are not 128 wide")
    args = parser.parse_args(arguments)
    return reported(lambda: convert(args.source, args.target, args.axes_dims_rope, args.num_attention_heads))
