"""An IP-Adapter from scratch: the object that is drawn is that of the given image.

python -m benchmarks.training.ip_adapter --work proofs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.training.image_prompts import Make, image_prompt_proof
from benchmarks.training.runner import main
from diffusers_flux_ext import FluxIPAdapter, IPAdapterImages


def make(folder: Path, encoder: Any) -> Make:
    """Return what makes conditions of images with the trained adapter; see [`image_prompt_proof`]."""
    adapter = FluxIPAdapter.from_pretrained(folder / "adapter")
    return lambda images: IPAdapterImages(adapter, images=images, image_encoder=encoder)


PROOF = image_prompt_proof("ip_adapter", "IP-Adapter of 8 tokens, from scratch", make)

if __name__ == "__main__":
    main(PROOF)
