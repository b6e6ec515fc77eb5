"""A tiny InfuseNet, a tiny projector and a face encoder that invents a face from the picture's colours."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.support.tiny.controlnet import tiny_controlnet
from diffusers_flux_ext import FaceEmbedding, FaceEncoder, InfiniteYouIdentity, InfiniteYouImageProjector
from diffusers_flux_ext.methods.infinite_you.faces import choose_face
from diffusers_flux_ext.testing import make_model, seeded
from diffusers_flux_ext.testing.components import TRANSFORMER


PROJECTOR: dict[str, Any] = {
    "dim": 24,
    "depth": 2,
    "dim_head": 8,
    "heads": 3,
    "num_queries": 4,
    "embedding_dim": 16,
    "output_dim": TRANSFORMER["joint_attention_dim"],
    "ff_mult": 2,
}
POINTS = np.array([[14.0, 10.0], [30.0, 9.0], [22.0, 16.0], [16.0, 24.0], [29.0, 23.0]])


def tiny_projector(seed: int = 0, **overrides: Any) -> InfiniteYouImageProjector:
    """A projector of width 24 whose tokens are as wide as the tiny T5's."""
    return make_model(InfiniteYouImageProjector, {**PROJECTOR, **overrides}, seed)


def tiny_identity_modules(seed: int = 7) -> dict[str, Any]:
    """The components that InfiniteYou adds to a pipeline."""
    return {"controlnet": tiny_controlnet(seed), "image_projector": tiny_projector(seed)}


def face(seed: int = 0) -> torch.Tensor:
    """A normalised embedding `(16,)`."""
    return torch.nn.functional.normalize(torch.randn(16, generator=seeded(seed)), dim=0)


class ColorFaceEncoder(FaceEncoder):
    """Each of the given boxes is a face; its embedding is made of the mean colour of the picture and its number."""

    def __init__(self, boxes: Any = ((0, 0, 60, 60),)) -> None:
        self.boxes = boxes
        self.seen: list[Image.Image] = []

    def encode(self, image: Image.Image, index: int | None = None) -> FaceEmbedding:
        self.seen.append(image)
        chosen = choose_face(self.boxes, index)
        color = np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) / 255
        phases = torch.arange(16) * (1 + float(color[0])) + 3 * float(color[1]) + 5 * float(color[2]) + chosen
        return FaceEmbedding(
            torch.nn.functional.normalize(phases.sin(), dim=0),
            torch.from_numpy(POINTS + [color[0] * 6, color[1] * 6]),
            self.boxes[chosen],
        )


def identity(pipe: Any, seed: int = 0, **arguments: Any) -> InfiniteYouIdentity:
    """A condition with the pipeline's modules, and an embedding unless a picture is given."""
    given = {} if "id_image" in arguments else {"id_embeds": face(seed)}
    return InfiniteYouIdentity(pipe.controlnet, pipe.image_projector, **{**given, **arguments})
