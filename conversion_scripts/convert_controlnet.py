"""Convert a FLUX.1 ControlNet between the key layouts of diffusers, XLabs (`bfl`) and DiffSynth-Studio.

    python conversion_scripts/convert_controlnet.py flux-canny-controlnet-v3.safetensors xlabs-canny
    python conversion_scripts/convert_controlnet.py diffusion_pytorch_model.safetensors inpainting-beta

A target with the ending `.safetensors` becomes one file; any other becomes a folder for
`FluxExtControlNetModel.from_pretrained`, with the config that the weights show.
"""

import sys

from diffusers_flux_ext import FluxExtControlNetModel
from diffusers_flux_ext.checkpoints.converting import convert_checkpoint
from diffusers_flux_ext.methods.control.checkpoint import convert_controlnet_state_dict


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return convert_checkpoint(__doc__, convert_controlnet_state_dict, FluxExtControlNetModel, arguments)


if __name__ == "__main__":
    sys.exit(main())
