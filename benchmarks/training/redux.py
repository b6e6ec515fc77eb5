"""An embedder of Redux from scratch: the object that is drawn is that of the given image.

python -m benchmarks.training.redux --work proofs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import ReduxImageEncoder

from benchmarks.training.image_prompts import Make, image_prompt_proof
from benchmarks.training.runner import main
from diffusers_flux_ext import ReduxImages


def make(folder: Path, encoder: Any) -> Make:
    """Return what makes conditions of images with the trained embedder; see [`image_prompt_proof`]."""
    embedder = ReduxImageEncoder.from_pretrained(folder / "image_embedder")
    return lambda images: ReduxImages(images, image_embedder=embedder, image_encoder=encoder)


PROOF = image_prompt_proof("redux", "Redux' embedder, from scratch", make)

if __name__ == "__main__":
    main(PROOF)
