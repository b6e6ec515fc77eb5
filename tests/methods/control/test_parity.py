"""ControlNets against the reference's: one, two with windows, union, inpainting, the released depth."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.support.parity.loop import STEPS, TOLERANCE, mask, our_images, reference_images
from benchmarks.support.reference import controlnet_input, reference_multi_controlnet, reference_pair
from benchmarks.support.tiny.controlnet import OTHER_PICTURE, PICTURE, tiny_controlnet
from diffusers_flux_ext import ControlNetImage, EntityRegions, FluxConditionedPipeline, FluxFlowMatchScheduler
from diffusers_flux_ext.testing import quiet


DEEP = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 8, "axes_dims_rope": (2, 2, 4)}
# Of the first three of four steps: the reference's progress goes 1, 2/3, 1/3, 0, both bounds included.
EARLY, OUR_EARLY = {"start": 1.0, "end": 0.3}, {"start": 0.0, "end": 0.75}
LATE, OUR_LATE = {"start": 0.7, "end": 0.0}, {"start": 0.25, "end": 1.0}


def make_pair(**transformer):
    both = reference_pair(seed=3, **transformer)
    components = {**both.components, "scheduler": FluxFlowMatchScheduler()}
    return both.reference, quiet(FluxConditionedPipeline(**components))


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def check(pair, controlnets, theirs, ours, their_arguments=None, our_arguments=None):
    reference, pipe = pair
    reference.controlnet = reference_multi_controlnet(controlnets, pipe.transformer)
    pictures = [given.pop("image").resize((64, 48)) for given in theirs]
    inputs = [
        controlnet_input(controlnet_id=index, image=picture, **given)
        for index, (picture, given) in enumerate(zip(pictures, theirs))
    ]
    conditions = [
        ControlNetImage(controlnet, picture, **given)
        for controlnet, picture, given in zip(controlnets, pictures, ours, strict=True)
    ]
    extra = (our_arguments or {}).pop("conditions", []) if our_arguments else []
    try:
        expected = reference_images(reference, {"controlnet_inputs": inputs, **(their_arguments or {})}).clamp(-1, 1)
    finally:
        reference.controlnet = None
    images = our_images(pipe, conditions=[*conditions, *extra], **(our_arguments or {}))
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - our_images(pipe, conditions=extra, **(our_arguments or {}))).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["plain", "upscaler"])
def test_one(pair, kind):
    check(pair, [tiny_controlnet(5, kind)], [{"image": PICTURE, "scale": 0.7}], [{"scale": 0.7}])


def test_two_with_windows(pair):
    controlnets = [tiny_controlnet(5), tiny_controlnet(6, num_layers=2, num_single_layers=0)]
    check(
        pair,
        controlnets,
        [{"image": PICTURE, "scale": 0.7, **EARLY}, {"image": OTHER_PICTURE, "scale": 0.4, **LATE}],
        [{"scale": 0.7, **OUR_EARLY}, {"scale": 0.4, **OUR_LATE}],
    )


@pytest.mark.parametrize("mode", ["canny", "depth", "lq"])
def test_union(pair, mode):
    check(pair, [tiny_controlnet(5, "union")], [{"image": PICTURE, "processor_id": mode}], [{"mode": mode}])


@pytest.mark.parametrize("box", [(16, 8, 48, 40), (5, 3, 21, 44)])
def test_inpainting(pair, box):
    hole = mask(box)
    controlnet = tiny_controlnet(5, "inpaint")
    check(pair, [controlnet], [{"image": PICTURE, "inpaint_mask": hole}], [{"inpaint_mask": hole}])


@pytest.mark.slow
def test_released_depth():
    pair = make_pair(**DEEP)
    config = {**DEEP, "num_layers": 5, "num_single_layers": 10}
    controlnets = [tiny_controlnet(5, **config), tiny_controlnet(6, **{**config, "num_single_layers": 0})]
    check(
        pair, controlnets, [{"image": PICTURE, "scale": 0.2}, {"image": OTHER_PICTURE, "scale": 0.2}],
        [{"scale": 0.2}, {"scale": 0.2}],
    )  # fmt: skip


def test_true_cfg_with_residuals_of_its_own(pair):
    check(
        pair,
        [tiny_controlnet(5)],
        [{"image": PICTURE, "scale": 0.7}],
        [{"scale": 0.7, "negative": "own"}],
        {"negative_prompt": "ugly", "cfg_scale": 2.0},
        {"negative_prompt": "ugly", "true_cfg_scale": 2.0},
    )


def test_with_entities(pair):
    prompts, masks = ["a red dog", "a blue bird"], [mask((0, 0, 32, 48)), mask((24, 8, 64, 48))]
    check(
        pair,
        [tiny_controlnet(5)],
        [{"image": PICTURE, "scale": 0.7}],
        [{"scale": 0.7}],
        {"eligen_entity_prompts": prompts, "eligen_entity_masks": masks},
        {"conditions": [EntityRegions(prompts, masks)]},
    )


def test_the_windows_are_those_of_the_steps():
    assert STEPS == 4
    progress = [(STEPS - 1 - index) / (STEPS - 1) for index in range(STEPS)]
    assert [EARLY["end"] <= value <= EARLY["start"] for value in progress] == [True, True, True, False]
    assert [LATE["end"] <= value <= LATE["start"] for value in progress] == [False, True, True, True]


def test_a_mask_that_is_not_black_and_white_counts_from_the_middle(pair):
    grey = Image.fromarray(np.where(np.asarray(mask((16, 8, 48, 40))) > 0, 200, 30).astype(np.uint8))
    _, pipe = pair
    controlnet = tiny_controlnet(5, "inpaint")
    images = [
        our_images(pipe, conditions=[ControlNetImage(controlnet, PICTURE, inpaint_mask=hole)])
        for hole in (grey, mask((16, 8, 48, 40)))
    ]
    assert torch.equal(*images)


def test_a_mask_of_another_size_is_stretched_to_the_canvas_once(pair):
    """Unlike in the reference, which samples its own pixels for the channel: see docs/controlnet.md."""
    _, pipe = pair
    controlnet, hole = tiny_controlnet(5, "inpaint"), mask((20, 11, 61, 70), (90, 80))
    images = [
        our_images(pipe, conditions=[ControlNetImage(controlnet, PICTURE, inpaint_mask=each)])
        for each in (hole, hole.resize((64, 48), Image.Resampling.NEAREST))
    ]
    assert torch.equal(*images)
