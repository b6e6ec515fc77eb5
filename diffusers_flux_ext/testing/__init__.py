"""Tiny real components for tests, benchmarks and packages that add a condition.

They are diffusers' and transformers' own classes with FLUX.1's structure, a few blocks deep and 24 to 40 wide: a
pipeline is made in milliseconds and draws on a CPU without any download. Weights depend on a seed and the parameters'
names alone, and none of them is zero or one, so that no branch of a model can be missing in silence.

    pipe = tiny_pipeline(FluxConditionedPipeline)
    image = pipe(**call_kwargs(conditions=[MyCondition("a dog")])).images  # (1, 3, 32, 48)

See "Testing a condition" in `docs/composition.md`.
"""

from .components import tiny_components, tiny_text_encoder, tiny_text_encoder_2, tiny_transformer, tiny_vae
from .models import copy_model, make_model
from .pipelines import call_kwargs, different, quiet, seeded, tiny_pipeline
from .tokenizers import tiny_tokenizers
from .weights import randomise, seeded_generator


__all__ = [
    "call_kwargs",
    "copy_model",
    "different",
    "make_model",
    "quiet",
    "randomise",
    "seeded",
    "seeded_generator",
    "tiny_components",
    "tiny_pipeline",
    "tiny_text_encoder",
    "tiny_text_encoder_2",
    "tiny_tokenizers",
    "tiny_transformer",
    "tiny_vae",
]
