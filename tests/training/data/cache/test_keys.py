"""What cached samples are named by: models and tokenizers, and nothing that changes no result."""

import pytest
import torch

from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline, tiny_vae
from diffusers_flux_ext.training.data.cache import keys


def test_models_are_told_apart_by_their_weights() -> None:
    one, other = tiny_vae(0), tiny_vae(0)
    assert keys.module_digest(one) == keys.module_digest(other) != keys.module_digest(tiny_vae(1))
    other.register_to_config(scaling_factor=2 * one.config.scaling_factor)
    assert keys.module_digest(one) != keys.module_digest(other)
    other.register_to_config(scaling_factor=one.config.scaling_factor, _name_or_path="elsewhere")
    assert keys.module_digest(one) == keys.module_digest(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert keys.module_digest(one) != keys.module_digest(other) != keys.module_digest(None)
    with pytest.raises(ValueError, match="is not in memory.*Give `model_hash`"):
        keys.module_digest(tiny_vae(0).to("meta"))


def test_tokenizers_are_told_apart_by_how_they_split_texts() -> None:
    tokenizer = tiny_pipeline(FluxConditionedPipeline).tokenizer_2
    first = keys.tokenizer_digest(tokenizer)
    tokenizer(["a", "a lake"], padding="max_length", max_length=7, truncation=True)
    assert keys.tokenizer_digest(tokenizer) == first
    tokenizer.add_tokens(["lake"])
    assert keys.tokenizer_digest(tokenizer) != first != keys.tokenizer_digest(None)
