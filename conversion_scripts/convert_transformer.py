"""Convert a FLUX.1 transformer between the diffusers, Black Forest Labs and DiffSynth-Studio key layouts.

    python conversion_scripts/convert_transformer.py flux1-dev.safetensors dev-diffsynth.safetensors --to diffsynth
    python conversion_scripts/convert_transformer.py Flex.2-preview.safetensors flex2/transformer

A target with the ending `.safetensors` becomes one file; any other becomes a folder for `from_pretrained`.
"""

import sys

from diffusers_flux_ext import FluxExtTransformer2DModel
from diffusers_flux_ext.checkpoints.converting import convert_checkpoint
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return convert_checkpoint(__doc__, convert_transformer_state_dict, FluxExtTransformer2DModel, arguments)


if __name__ == "__main__":
    sys.exit(main())
