"""FLUX.1 Fill against the reference's, alone, with true CFG and with entities."""

import pytest

from benchmarks.support.parity.loop import check, mask, our_images
from benchmarks.support.reference import reference_pair
from benchmarks.support.tiny.controlnet import PICTURE
from diffusers_flux_ext import EntityRegions, FillMask, FluxConditionedPipeline, FluxFlowMatchScheduler
from diffusers_flux_ext.testing import quiet


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3, in_channels=384, out_channels=64)
    return both.reference, quiet(FluxConditionedPipeline(**{**both.components, "scheduler": FluxFlowMatchScheduler()}))


def arguments(box=(16, 8, 48, 40), **more):
    hole = mask(box)
    theirs = {"flux_fill_image": PICTURE, "flux_fill_mask": hole}
    return theirs, {"conditions": [FillMask(PICTURE, hole, paste_back=False), *more.pop("others", [])], **more}


@pytest.mark.parametrize("box", [(16, 8, 48, 40), (5, 3, 21, 44), (0, 0, 64, 48), (0, 0, 0, 0)])
def test_boxes(pair, box):
    theirs, ours = arguments(box)
    check(pair, theirs, ours)


def test_true_cfg(pair):
    theirs, ours = arguments(negative_prompt="ugly", true_cfg_scale=2.0)
    expected = check(pair, {**theirs, "negative_prompt": "ugly", "cfg_scale": 2.0}, ours)
    assert (expected - our_images(pair[1], **arguments()[1])).abs().max() > 0.01


def test_with_entities(pair):
    prompts, masks = ["a red dog"], [mask((16, 8, 40, 40))]
    theirs, ours = arguments(others=[EntityRegions(prompts, masks)])
    check(pair, {**theirs, "eligen_entity_prompts": prompts, "eligen_entity_masks": masks}, ours)
