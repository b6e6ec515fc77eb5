"""Convert a FLUX.1 ControlNet between the key layouts of diffusers, XLabs (`bfl`) and DiffSynth-Studio.

    flux-ext convert controlnet flux-canny-controlnet-v3.safetensors xlabs-canny
    flux-ext convert controlnet diffusion_pytorch_model.safetensors inpainting-beta

A target with the suffix `.safetensors` becomes one file; any other becomes a folder for
`FluxExtControlNetModel.from_pretrained`, with the config that the weights show.
"""

from ...checkpoints.converting import convert_checkpoint
from .checkpoint import convert_controlnet_state_dict
from .model import FluxExtControlNetModel


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return convert_checkpoint("controlnet", __doc__, convert_controlnet_state_dict, FluxExtControlNetModel, arguments)
