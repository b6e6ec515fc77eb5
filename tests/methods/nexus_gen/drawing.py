"""What the tests of Nexus-Gen's pipeline draw."""

from typing import Any

import torch
from PIL import Image

from benchmarks.support.tiny.nexus_gen import pictures
from diffusers_flux_ext.testing import call_kwargs


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
PICTURE, WIDE, LARGE = pictures({"a": (60, 40), "b": (110, 40), "c": (150, 120)}).values()
OTHER = PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def draw(pipe: Any, **arguments: Any) -> torch.Tensor:
    """Images of two steps."""
    return pipe(**call_kwargs(**{"num_inference_steps": 2, **arguments})).images
