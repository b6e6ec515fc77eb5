"""LoRA-Fusion against the reference's mergers: one gate, the velocity, loops with one to three LoRAs."""

import pytest
import torch

from benchmarks.support.parity.loop import TOLERANCE, our_images, reference_images
from benchmarks.support.reference import load_merged, reference_lora_patcher, reference_pair, reference_velocity
from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from diffusers_flux_ext import FluxConditionedPipeline, FluxFlowMatchScheduler, enable_lora_fusion, load_lora
from diffusers_flux_ext.testing import quiet, seeded
from tests.models.test_transformer_parity import inputs, our_velocity


# Without alphas, since the reference takes one alpha for a whole file.
LORAS = [small_lora(1, 2), small_lora(2, 5), small_lora(3, 1)]
WEIGHTS = [1.0, 0.5, 1.7]


@pytest.fixture(scope="module")
def reference():
    both = reference_pair(seed=3)
    both.reference.enable_lora_hot_loading(both.reference.dit)
    return both


@pytest.fixture
def pair(reference):
    ours = quiet(FluxConditionedPipeline(**{**reference.components, "scheduler": FluxFlowMatchScheduler()}))
    yield reference.reference, ours
    ours.unload_lora_weights()


def load_both(pair, number, fusion):
    reference, ours = pair
    load_merged(reference, fusion, LORAS[:number], WEIGHTS[:number])
    for index in range(number):
        load_lora(ours, LORAS[index], f"lora_{index}", WEIGHTS[index])
    enable_lora_fusion(ours, fusion)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_gate(number):
    fusion = tiny_fusion(5)
    base, loras = torch.randn(2, 7, 224, generator=seeded(1)), torch.randn(number, 2, 7, 224, generator=seeded(2))
    expected = reference_lora_patcher(fusion)(base, loras, "single_blocks.1.to_qkv_mlp")
    torch.testing.assert_close(
        base + fusion("single_blocks.1.to_qkv_mlp", base, list(loras)), expected, atol=1e-5, rtol=0
    )


def test_the_velocity(pair):
    load_both(pair, 3, tiny_fusion(7))
    expected = reference_velocity(pair[0].dit, **inputs(64))
    torch.testing.assert_close(our_velocity(pair[1].transformer, inputs(64)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("number", [1, 3])
def test_the_loop(pair, number):
    reference, ours = pair
    plain = our_images(ours)
    load_both(pair, number, tiny_fusion(5))
    expected = reference_images(reference, {}).clamp(-1, 1)
    images = our_images(ours)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - plain).abs().max() > 0.01


def test_true_cfg(pair):
    reference, ours = pair
    load_both(pair, 2, tiny_fusion(6))
    expected = reference_images(reference, {"negative_prompt": "ugly", "cfg_scale": 2.0}).clamp(-1, 1)
    images = our_images(ours, negative_prompt="ugly", true_cfg_scale=2.0)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
