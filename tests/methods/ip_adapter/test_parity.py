"""IP-Adapter against the reference: the adapter, the picture's embedding, a step and whole loops."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.support.reference import reference_pair
from benchmarks.support.reference.dit import reference_velocity
from benchmarks.support.reference.ip_adapter import reference_image_embeds, reference_ip_adapter, reference_siglip
from benchmarks.support.tiny.ip_adapter import image_embeds, picture, tiny_ip_adapter, tiny_siglip
from diffusers_flux_ext import (
    Contribution,
    DenoisingStep,
    EntityRegions,
    FluxConditionedPipeline,
    FluxFlowMatchScheduler,
    IPAdapterImages,
    PromptEmbeds,
    TokenGroup,
    predict_velocity,
)
from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.canvas import pack_latents
from diffusers_flux_ext.inputs.vision import embed_images
from diffusers_flux_ext.testing import seeded


FORWARD, LOOP = {"atol": 1e-4, "rtol": 0}, {"atol": 1e-3, "rtol": 0}
STEPS, LENGTH = 4, 24


@pytest.fixture(scope="module")
def adapter():
    return tiny_ip_adapter(5)


@pytest.fixture(scope="module")
def pair(adapter):
    both = reference_pair(seed=3)
    encoder = tiny_siglip(4)
    both.reference.ipadapter = reference_ip_adapter(adapter)
    both.reference.ipadapter_image_encoder = reference_siglip(encoder)
    ours = FluxConditionedPipeline(
        **{**both.components, "scheduler": FluxFlowMatchScheduler(), "image_encoder": encoder}
    )
    ours.set_progress_bar_config(disable=True)
    return both.reference, ours


@pytest.mark.parametrize("pictures", [1, 3])
def test_keys_and_values(adapter, pictures):
    embeds = image_embeds(1, pictures, 12)
    expected = reference_ip_adapter(adapter)(embeds)
    keys, values = adapter(embeds[None])
    assert keys.shape == (5, 1, 4 * pictures, 2, 16)
    for block in range(5):
        torch.testing.assert_close(keys[block].transpose(1, 2), expected[block]["ip_k"], **FORWARD)
        torch.testing.assert_close(values[block].transpose(1, 2), expected[block]["ip_v"], **FORWARD)


def test_embeddings_of_pictures(pair):
    pictures = [picture(0), picture(1, (500, 300)).convert("RGBA"), picture(2, (384, 384)).convert("L")]
    expected = reference_image_embeds(pair[0], pictures)
    torch.testing.assert_close(embed_images(pictures, pair[1].image_encoder)[0], expected, **FORWARD)


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("with_reference_tokens", [False, True])
def test_one_step(pair, adapter, scale, with_reference_tokens):
    reference, ours = pair
    embeds = image_embeds(2, 2, 12)
    latents = torch.randn(1, 16, 4, 6, generator=seeded(1))
    prompt, pooled = torch.randn(1, 7, 40, generator=seeded(2)), torch.randn(1, 24, generator=seeded(3))
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0))
    extra = torch.randn(1, 6, 64, generator=seeded(4))
    extra_ids = ids + torch.tensor([1.0, 0.0, 0.0])
    kontext = {"kontext_latents": extra, "kontext_image_ids": extra_ids[None]} if with_reference_tokens else {}
    expected = reference_velocity(
        reference.dit,
        latents=latents,
        timestep=torch.tensor([600.0]),
        prompt_emb=prompt,
        pooled_prompt_emb=pooled,
        guidance=torch.tensor([3.5]),
        text_ids=torch.zeros(1, 7, 3),
        ipadapter_kwargs_list=reference.ipadapter(embeds, scale=scale),
        **kontext,
    )
    step = DenoisingStep(
        0, 1, "cond", torch.tensor([0.6]), pack_latents(latents), ids,
        PromptEmbeds(prompt, pooled, torch.zeros(7, 3)), torch.tensor([3.5]),
    )  # fmt: skip
    condition = IPAdapterImages(adapter, image_embeds=embeds, scale=scale)
    contributions = [condition.contribute({"image_embeds": embeds[None]}, step)]
    if with_reference_tokens:
        contributions.append(Contribution(reference=[TokenGroup("reference_0", extra, extra_ids)]))
    with regional_attention(ours.transformer):
        velocity = predict_velocity(ours.transformer, step, contributions)
        plain = predict_velocity(ours.transformer, step, contributions[1:])
    torch.testing.assert_close(velocity, pack_latents(expected), **FORWARD)
    assert (velocity - plain).abs().max() > 0.05


def reference_images(reference, arguments):
    """The reference's picture as floats: its own are truncated to bytes."""
    decoded = []
    handle = reference.vae_decoder.register_forward_hook(lambda module, inputs, output: decoded.append(output))
    try:
        reference(
            "a cat on the table", height=48, width=64, seed=0, num_inference_steps=STEPS, t5_sequence_length=LENGTH,
            progress_bar_cmd=list, **arguments
        )  # fmt: skip
    finally:
        handle.remove()
    return decoded[-1].clamp(-1, 1)


def our_images(ours, **arguments):
    noise = torch.randn(1, 16, 6, 8, generator=torch.Generator("cpu").manual_seed(0))
    images = ours(
        "a cat on the table", height=48, width=64, num_inference_steps=STEPS, max_sequence_length=LENGTH,
        output_type="pt", latents=pack_latents(noise), **arguments
    ).images  # fmt: skip
    return images * 2 - 1


PICTURES = [picture(0), picture(1, (50, 70))]


@pytest.mark.parametrize("pictures", [PICTURES[:1], PICTURES], ids=["one", "two"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_loop(pair, adapter, pictures, scale):
    expected = reference_images(pair[0], {"ipadapter_images": pictures, "ipadapter_scale": scale})
    images = our_images(pair[1], conditions=[IPAdapterImages(adapter, pictures, scale)])
    torch.testing.assert_close(images, expected, **LOOP)
    assert (images - our_images(pair[1])).abs().max() > 0.05


def test_a_guided_loop_has_the_zero_picture_at_full_scale_on_the_negative_side(pair, adapter):
    expected = reference_images(
        pair[0],
        {"ipadapter_images": PICTURES, "ipadapter_scale": 0.7, "negative_prompt": "ugly", "cfg_scale": 2.0},
    )
    guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
    condition = IPAdapterImages(adapter, PICTURES, 0.7)
    torch.testing.assert_close(our_images(pair[1], conditions=[condition], **guided), expected, **LOOP)
    without = IPAdapterImages(adapter, PICTURES, 0.7, negative=None)
    assert (our_images(pair[1], conditions=[without], **guided) - expected).abs().max() > 0.01


@pytest.mark.parametrize("force_classes", [False, True])
def test_a_loop_with_entities(pair, adapter, force_classes, monkeypatch):
    if force_classes:
        monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: False)
    array = np.zeros((48, 64, 3), dtype=np.uint8)
    array[:, 20:40] = 255
    masks, prompts = [Image.fromarray(array)], ["a red dog"]
    expected = reference_images(
        pair[0],
        {"ipadapter_images": PICTURES[:1], "eligen_entity_prompts": prompts, "eligen_entity_masks": masks},
    )
    conditions = [EntityRegions(prompts, masks), IPAdapterImages(adapter, PICTURES[0])]
    torch.testing.assert_close(our_images(pair[1], conditions=conditions), expected, **LOOP)
