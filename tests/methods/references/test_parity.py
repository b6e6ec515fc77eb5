"""Reference pictures against the reference's Kontext, whose references all lie at t = 1 from row and column 0."""

import pytest

from benchmarks.support.parity.loop import check, our_images
from benchmarks.support.reference import controlnet_input, reference_multi_controlnet, reference_pair
from benchmarks.support.tiny.controlnet import OTHER_PICTURE, PICTURE, tiny_controlnet
from diffusers_flux_ext import ControlNetImage, FluxConditionedPipeline, FluxFlowMatchScheduler, ReferenceImages
from diffusers_flux_ext.testing import quiet


# The reference never resizes, and takes whole tokens only.
PICTURES = [PICTURE.resize((48, 32)), OTHER_PICTURE.resize((64, 48)), PICTURE.resize((16, 80))]


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3)
    return both.reference, quiet(FluxConditionedPipeline(**{**both.components, "scheduler": FluxFlowMatchScheduler()}))


def condition(count):
    return ReferenceImages(PICTURES[:count], layout="same", preferred_size=False)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several(pair, count):
    expected = check(pair, {"kontext_images": PICTURES[:count]}, {"conditions": [condition(count)]})
    assert (expected - our_images(pair[1])).abs().max() > 0.01


def test_true_cfg(pair):
    guided = {"negative_prompt": "ugly"}
    check(
        pair,
        {"kontext_images": PICTURES[:2], **guided, "cfg_scale": 2.0},
        {"conditions": [condition(2)], **guided, "true_cfg_scale": 2.0},
    )


def test_with_a_controlnet(pair):
    reference, pipe = pair
    controlnet = tiny_controlnet(5)
    reference.controlnet = reference_multi_controlnet([controlnet], pipe.transformer)
    inputs = [controlnet_input(controlnet_id=0, image=PICTURES[1], scale=0.7)]
    try:
        check(
            pair,
            {"kontext_images": PICTURES[:2], "controlnet_inputs": inputs},
            {"conditions": [condition(2), ControlNetImage(controlnet, PICTURES[1], 0.7)]},
        )
    finally:
        reference.controlnet = None
