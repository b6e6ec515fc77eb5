"""An IP-Adapter from scratch: the object that is drawn is that of the given image.

python -m benchmarks.training.ip_adapter --work proofs
"""

from __future__ import annotations

from pathlib import Path

from transformers import SiglipVisionModel

from benchmarks.training import tower
from benchmarks.training.drawing import Measured
from benchmarks.training.pictures import score_pictures
from benchmarks.training.runner import Bound, Proof, main
from diffusers_flux_ext import FluxIPAdapter, IPAdapterImages


RECIPE = "tiny_ip_adapter"


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare the item's image with another one, and with none; see [`Proof`]."""
    adapter = FluxIPAdapter.from_pretrained(folders[RECIPE] / "adapter")
    encoder = SiglipVisionModel.from_pretrained(folders[tower.FOLDER])
    return score_pictures(
        lambda images: IPAdapterImages(adapter, images=images, image_encoder=encoder), measured, items
    )


PROOF = Proof(
    "ip_adapter",
    "IP-Adapter of 8 tokens, from scratch",
    (RECIPE,),
    ("pictures",),
    score,
    {tower.FOLDER: tower.write_tower},
)

if __name__ == "__main__":
    main(PROOF)
