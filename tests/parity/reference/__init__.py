"""Tiny instances of the reference package's FLUX modules, each derived from a diffusers component.

Every forward that runs is the reference's own; nothing here computes a result. Importing this package skips the
importing test module where the reference package is not installed. A further method adds one file with one
`reference_<module>(component)` function.
"""

from tests.parity.reference.boot import import_reference
from tests.parity.reference.components import (
    tiny_components,
    tiny_text_encoder,
    tiny_text_encoder_2,
    tiny_transformer,
    tiny_vae,
)
from tests.parity.reference.dit import reference_dit, reference_dit_weights, reference_velocity
from tests.parity.reference.pipeline import ReferencePair, reference_pair, reference_pipeline
from tests.parity.reference.text_encoders import reference_clip, reference_t5
from tests.parity.reference.tokenizers import tiny_tokenizers
from tests.parity.reference.vae import reference_vae_decoder, reference_vae_encoder
from tests.parity.reference.weights import randomise, seeded_generator


__all__ = [
    "ReferencePair",
    "import_reference",
    "randomise",
    "reference_clip",
    "reference_dit",
    "reference_dit_weights",
    "reference_pair",
    "reference_pipeline",
    "reference_t5",
    "reference_vae_decoder",
    "reference_vae_encoder",
    "reference_velocity",
    "seeded_generator",
    "tiny_components",
    "tiny_text_encoder",
    "tiny_text_encoder_2",
    "tiny_tokenizers",
    "tiny_transformer",
    "tiny_vae",
]
