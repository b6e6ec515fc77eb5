"""The tiny model with everything that ships beside it, and its call."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image

from diffusers_flux_ext.cli.showcase import Modules, load_modules
from diffusers_flux_ext.flux_shapes import Scene, caption, sample_free_scene
from diffusers_flux_ext.tiny import TINY_CALL


@cache
def modules() -> Modules:
    """Load the model and the modules once."""
    torch.set_num_threads(1)
    return load_modules()


def draw(prompt: str, conditions: Sequence[Any] = (), loras: Sequence[str] = (), **options: Any) -> Image.Image:
    """Draw one image, with the same noise for the same seed.

    Args:
        prompt (`str`): The prompt.
        conditions (`Sequence[FluxCondition]`, *optional*): Conditions.
        loras (`Sequence[str]`, *optional*): LoRAs that are switched on: `"eligen"`, `"style"`, `"size"`.
        options: Other arguments of the pipeline, and `seed`, 0 by default.

    Returns:
        `PIL.Image.Image`
    """
    pipe = modules().pipe
    if loras:
        pipe.enable_lora()
        pipe.set_adapters(list(loras), options.pop("weights", None))
    else:
        pipe.disable_lora()
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    image: Image.Image = pipe(
        prompt, conditions=list(conditions), generator=generator, **{**TINY_CALL, **options}
    ).images[0]
    return image


def held_out_scene(seed: int, objects: int) -> tuple[Scene, str]:
    """Return a scene whose combination of colours and shapes no module was trained on, and its caption."""
    scene = sample_free_scene(random.Random(seed), objects, held_out=True)
    return scene, caption(scene, random.Random(seed))
