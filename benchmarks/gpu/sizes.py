"""The sizes that figures are taken at: the released one, and a toy that shows that the sections work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers_flux_ext.models.released import VAE
from diffusers_flux_ext.testing.components import TRANSFORMER
from diffusers_flux_ext.testing.components import VAE as TINY_VAE


@dataclass(frozen=True)
class Size:
    """Sizes of models and calls.

    Attributes:
        name (`str`): Its name on the command line.
        pixels (`int`): Side of the image.
        text_tokens (`int`): Tokens of a prompt.
        steps (`int`): Steps of a whole call.
        repeats (`int`): Calls that count.
        transformer (`dict[str, Any]`): Config of the transformer.
        vae (`dict[str, Any]`): Config of the autoencoder.
        dtype (`str`): Data type of all weights.
    """

    name: str
    pixels: int
    text_tokens: int
    steps: int
    repeats: int
    transformer: dict[str, Any]
    vae: dict[str, Any]
    dtype: str

    @property
    def side(self) -> int:
        """Tokens on a side of the image."""
        return self.pixels // 16

    @property
    def is_toy(self) -> bool:
        """Whether figures mean nothing."""
        return self.name == "toy"

    def call(self) -> dict[str, Any]:
        """Return the settings that whole calls have in common."""
        return {"pixels": self.pixels, "text": self.text_tokens, "steps": self.steps, "dtype": self.dtype}

    def step(self) -> dict[str, Any]:
        """Return the settings that single steps have in common."""
        return {"pixels": self.pixels, "text": self.text_tokens, "dtype": self.dtype}


RELEASED = Size("released", 1024, 512, 8, 5, {"guidance_embeds": True}, VAE, "bfloat16")
SHALLOW = {**TRANSFORMER, "num_layers": 1, "num_single_layers": 1}
TOY = Size("toy", 64, 16, 2, 1, SHALLOW, TINY_VAE, "float32")
SIZES = {size.name: size for size in (RELEASED, TOY)}
