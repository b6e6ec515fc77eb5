"""FLUX.1 schnell: every method on a transformer without the guidance embedder, and texts of at most 256 tokens."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from benchmarks.support.conditions import CASES
from benchmarks.support.tiny.lora_encoder import tiny_lora
from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora
from diffusers_flux_ext import FluxConditionedPipeline, enable_lora_fusion, load_timestep_lora
from diffusers_flux_ext.testing import call_kwargs, different, tiny_pipeline, tiny_transformer


FOUR_STEPS = {"num_inference_steps": 4}
LIMIT = "trained with 256 text tokens, got 512. Set `max_sequence_length=256`"


def schnell(channels: int = 0, **overrides):
    transformer = tiny_transformer(0, guidance_embeds=False, in_channels=64 + channels, out_channels=64)
    return tiny_pipeline(FluxConditionedPipeline, transformer=transformer, **overrides)


@pytest.fixture(scope="module")
def plain():
    return schnell()


@pytest.fixture(scope="module")
def base(plain):
    return plain(**call_kwargs(**FOUR_STEPS)).images


def test_without_conditions_it_is_diffusers_own(plain, base):
    stock = tiny_pipeline(FluxPipeline, transformer=plain.transformer)
    assert torch.equal(stock(**call_kwargs(**FOUR_STEPS)).images, base)
    assert torch.equal(plain(**call_kwargs(**FOUR_STEPS, guidance_scale=9.0)).images, base)


@pytest.mark.parametrize("name", CASES)
def test_a_method_counts(name, plain, base):
    case = CASES[name]
    pipe = schnell(case.channels) if case.channels else plain
    image = pipe(**call_kwargs(**FOUR_STEPS, conditions=[case.build()])).images
    assert torch.isfinite(image).all()
    assert different(image, base)


def _fused(pipe):
    for seed, name in enumerate("ab"):
        pipe.load_lora_weights(small_lora(seed), adapter_name=name)
    pipe.set_adapters(["a", "b"])
    enable_lora_fusion(pipe, tiny_fusion())


CHANGES = {
    "LoRA": lambda pipe: pipe.load_lora_weights(tiny_lora()),
    "LoRA-Fusion": _fused,
    "timestep LoRA": lambda pipe: load_timestep_lora(pipe, tiny_timestep_lora()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_count(change, base):
    pipe = schnell()
    change(pipe)
    assert different(pipe(**call_kwargs(**FOUR_STEPS)).images, base)


class TestTextLength:
    def warned(self, pipe, caplog, **arguments):
        pipe(**call_kwargs(num_inference_steps=1, **arguments))
        return LIMIT in caplog.text

    def test_longer_texts_warn(self, plain, caplog):
        assert self.warned(plain, caplog, max_sequence_length=512)

    def test_longer_embeddings_warn(self, plain, caplog):
        embeds = {"prompt_embeds": torch.zeros(1, 512, 40), "pooled_prompt_embeds": torch.zeros(1, 24)}
        assert self.warned(plain, caplog, prompt=None, **embeds)

    def test_256_tokens_do_not_warn(self, plain, caplog):
        assert not self.warned(plain, caplog, max_sequence_length=256)

    def test_models_that_take_more_do_not_warn(self, caplog):
        assert not self.warned(tiny_pipeline(FluxConditionedPipeline), caplog, max_sequence_length=512)
        shifted = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        assert not self.warned(schnell(scheduler=shifted), caplog, max_sequence_length=512)
