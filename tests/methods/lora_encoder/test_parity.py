"""LoRA-Encoder against the reference's: the encoder, loops with one and two LoRAs, scale, true CFG."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.parity.loop import TOLERANCE, our_images, reference_images
from benchmarks.support.reference import reference_lora_encoder, reference_pair
from benchmarks.support.tiny.lora_encoder import tiny_lora, tiny_lora_encoder
from diffusers_flux_ext import FluxFlowMatchScheduler, FluxLoRAEncoderPipeline
from diffusers_flux_ext.testing import quiet


@pytest.fixture(scope="module")
def pair():
    both, encoder = reference_pair(seed=3), tiny_lora_encoder(4)
    both.reference.lora_encoder = reference_lora_encoder(encoder)
    components = {**both.components, "scheduler": FluxFlowMatchScheduler(), "lora_encoder": encoder}
    return both.reference, quiet(FluxLoRAEncoderPipeline(**components))


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"{seed}.safetensors") for seed in range(2)]
    for seed, path in enumerate(paths):
        save_file(tiny_lora(seed, rank=2 + seed), path)
    return paths


@pytest.mark.parametrize("sizes", [{}, {"num_encoder_layers": 3, "num_special_embeds": 1, "num_attention_heads": 2}])
@pytest.mark.parametrize("rank", [1, 5])
def test_the_encoder(sizes, rank):
    encoder, lora = tiny_lora_encoder(2, **sizes), tiny_lora(1, rank)
    names = {key.removesuffix(".lora_A.weight") for key in lora if "lora_A" in key}
    ours = encoder({name: (lora[f"{name}.lora_A.weight"], lora[f"{name}.lora_B.weight"]) for name in names})
    torch.testing.assert_close(ours, reference_lora_encoder(encoder)(lora), atol=1e-4, rtol=0)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_the_loop(pair, files, number, scale):
    reference, ours = pair
    theirs = {"lora_encoder_inputs": files[:number], "lora_encoder_scale": scale}
    expected = reference_images(reference, theirs).clamp(-1, 1)
    images = our_images(ours, lora_inputs=files[:number], lora_embedding_scale=scale)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - our_images(ours)).abs().max() > 0.01


def test_true_cfg_has_the_tokens_on_the_positive_side_only(pair, files):
    reference, ours = pair
    theirs = {"lora_encoder_inputs": files[0], "negative_prompt": "ugly", "cfg_scale": 2.0}
    expected = reference_images(reference, theirs).clamp(-1, 1)
    images = our_images(ours, lora_inputs=files[0], negative_prompt="ugly", true_cfg_scale=2.0)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
