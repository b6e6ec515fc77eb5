"""An embedder of Redux from scratch: the object that is drawn is that of the given image.

python -m benchmarks.training.redux --work proofs
"""

from __future__ import annotations

from pathlib import Path

from diffusers import ReduxImageEncoder
from transformers import SiglipVisionModel

from benchmarks.training import tower
from benchmarks.training.drawing import Measured
from benchmarks.training.pictures import score_pictures
from benchmarks.training.runner import Bound, Proof, main
from diffusers_flux_ext import ReduxImages


RECIPE = "tiny_redux"


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare the item's image with another one, and with none; see [`Proof`]."""
    embedder = ReduxImageEncoder.from_pretrained(folders[RECIPE] / "image_embedder")
    encoder = SiglipVisionModel.from_pretrained(folders[tower.FOLDER])
    return score_pictures(
        lambda images: ReduxImages(images, image_embedder=embedder, image_encoder=encoder), measured, items
    )


PROOF = Proof(
    "redux",
    "Redux' embedder, from scratch",
    (RECIPE,),
    ("pictures",),
    score,
    {tower.FOLDER: tower.write_tower},
)

if __name__ == "__main__":
    main(PROOF)
