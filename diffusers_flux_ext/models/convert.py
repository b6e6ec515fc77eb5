"""Convert a FLUX.1 transformer between the diffusers, Black Forest Labs and DiffSynth-Studio key layouts.

    flux-ext convert transformer flux1-dev.safetensors dev-diffsynth.safetensors --to diffsynth
    flux-ext convert transformer Flex.2-preview.safetensors flex2/transformer

A target with the suffix `.safetensors` becomes one file; any other becomes a folder for `from_pretrained`.
"""

from ..checkpoints.converting import convert_checkpoint
from ..checkpoints.layouts import convert_transformer_state_dict
from .transformer_flux_ext import FluxExtTransformer2DModel


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return convert_checkpoint(
        "transformer", __doc__, convert_transformer_state_dict, FluxExtTransformer2DModel, arguments
    )
