"""The released ControlNets, by their sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers import FluxControlNetModel

from .model import FluxExtControlNetModel


def _controlnet(**config: Any) -> FluxControlNetModel:
    kind = FluxExtControlNetModel if "extra_condition_channels" in config else FluxControlNetModel
    return kind(guidance_embeds=True, **config)


union_pro: Callable[[], FluxControlNetModel] = partial(_controlnet, num_layers=5, num_single_layers=10, num_mode=10)
inpaint: Callable[[], FluxControlNetModel] = partial(
    _controlnet, num_layers=6, num_single_layers=0, extra_condition_channels=4
)
xlabs: Callable[[], FluxControlNetModel] = partial(
    _controlnet, num_layers=2, num_single_layers=0, patch_size=2, conditioning_embedding_channels=16
)
infuse_net: Callable[[], FluxControlNetModel] = partial(_controlnet, num_layers=4, num_single_layers=10)
