"""The whole pipeline against the reference's: base, CFG, image-to-image and EliGen."""

import pytest
import torch
from PIL import Image

from benchmarks.support.parity.loop import check, mask, our_images
from benchmarks.support.reference import reference_pair
from diffusers_flux_ext import FluxEliGenPipeline, FluxFlowMatchScheduler
from diffusers_flux_ext.canvas import encode_image


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3)
    components = {**both.components, "scheduler": FluxFlowMatchScheduler()}
    ours = FluxEliGenPipeline(**components)
    ours.set_progress_bar_config(disable=True)
    return both.reference, ours


BOXES = {
    "two": [(0, 0, 32, 48), (32, 0, 64, 48)],
    "three": [(0, 0, 16, 48), (20, 0, 44, 20), (40, 30, 64, 48)],
    "overlapping": [(0, 0, 48, 32), (16, 16, 64, 48)],
    "empty": [(0, 0, 32, 48), (0, 0, 0, 0)],
    "full": [(0, 0, 64, 48), (0, 0, 64, 48)],
    "off the grid": [(3, 5, 21, 40), (37, 11, 60, 33)],
}
PROMPTS = ["a red dog", "a blue bird in the sky", "a green tree"]


def test_text_to_image(pair):
    check(pair, {}, {})


def test_true_cfg(pair):
    check(
        pair,
        {"negative_prompt": "ugly blurry", "cfg_scale": 2.5},
        {"negative_prompt": "ugly blurry", "true_cfg_scale": 2.5},
    )


@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_image_to_image(pair, strength):
    picture = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB")
    _, ours = pair
    latents = encode_image(ours.vae, ours.image_processor.preprocess(picture))
    check(
        pair,
        {"input_image": picture, "denoising_strength": strength},
        {"image": latents, "strength": strength, "latents": None, "generator": torch.Generator().manual_seed(0)},
    )


@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_entities(pair, boxes):
    masks, prompts = [mask(box) for box in boxes], PROMPTS[: len(boxes)]
    expected = check(
        pair,
        {"eligen_entity_prompts": prompts, "eligen_entity_masks": masks},
        {"entity_prompts": prompts, "entity_masks": masks},
    )
    plain = our_images(pair[1])
    assert (expected - plain).abs().max() > 0.01


@pytest.mark.parametrize("on_negative", [False, True])
def test_entities_with_true_cfg(pair, on_negative):
    masks = [mask(box) for box in BOXES["overlapping"]]
    check(
        pair,
        {
            "eligen_entity_prompts": PROMPTS[:2],
            "eligen_entity_masks": masks,
            "eligen_enable_on_negative": on_negative,
            "negative_prompt": "ugly",
            "cfg_scale": 2.0,
        },
        {
            "entity_prompts": PROMPTS[:2],
            "entity_masks": masks,
            "entities_on_negative": on_negative,
            "negative_prompt": "ugly",
            "true_cfg_scale": 2.0,
        },
    )


def test_a_mask_of_another_size_is_resized_alike(pair):
    masks = [mask((0, 0, 50, 70), (90, 70)), mask((20, 0, 33, 20), (33, 20))]
    check(
        pair,
        {"eligen_entity_prompts": PROMPTS[:2], "eligen_entity_masks": masks},
        {"entity_prompts": PROMPTS[:2], "entity_masks": masks},
    )


def test_classes_of_tokens_agree_with_the_reference_too(pair, monkeypatch):
    monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: False)
    test_entities(pair, BOXES["three"])
