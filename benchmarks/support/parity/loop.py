"""Whole loops of the reference and of ours on one small canvas, as float images."""

import numpy as np
import torch
from PIL import Image

from diffusers_flux_ext.canvas import pack_latents


TOLERANCE = 1e-3
STEPS, LENGTH = 4, 24


def mask(box, size=(64, 48)):
    array = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    left, top, right, bottom = box
    array[top:bottom, left:right] = 255
    return Image.fromarray(array)


def reference_images(reference, arguments):
    """The picture of the reference as floats: its decoder is asked again, since its pictures are truncated."""
    decoded = []
    decoder = reference.vae_decoder.forward

    def keep(*args, **kwargs):
        decoded.append(decoder(*args, **kwargs))
        return decoded[-1]

    reference.vae_decoder.forward = keep
    try:
        reference(
            "a cat on the table", height=48, width=64, seed=0, num_inference_steps=STEPS, t5_sequence_length=LENGTH,
            progress_bar_cmd=list, **arguments
        )  # fmt: skip
    finally:
        reference.vae_decoder.forward = decoder
    return decoded[-1]


def our_images(ours, **arguments):
    noise = torch.randn(1, 16, 6, 8, generator=torch.Generator("cpu").manual_seed(0))
    arguments.setdefault("latents", pack_latents(noise))
    images = ours(
        "a cat on the table", height=48, width=64, num_inference_steps=STEPS, max_sequence_length=LENGTH,
        output_type="pt", **arguments
    ).images  # fmt: skip
    return images * 2 - 1


def check(pair, reference_arguments, our_arguments):
    reference, ours = pair
    expected = reference_images(reference, reference_arguments).clamp(-1, 1)
    torch.testing.assert_close(our_images(ours, **our_arguments), expected, atol=TOLERANCE, rtol=0)
    return expected
