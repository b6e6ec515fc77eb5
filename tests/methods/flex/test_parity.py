"""Flex.2 against the reference's."""

import pytest
from PIL import Image

from benchmarks.support.parity.loop import check, mask, our_images
from benchmarks.support.reference import reference_pair
from benchmarks.support.tiny.controlnet import OTHER_PICTURE, PICTURE
from diffusers_flux_ext import FluxFlexPipeline, FluxFlowMatchScheduler
from diffusers_flux_ext.testing import quiet


INPAINT = {"inpaint_image": PICTURE.resize((64, 48)), "inpaint_mask": mask((5, 3, 41, 44))}
CONTROL = {"control_image": OTHER_PICTURE.resize((64, 48)), "control_strength": 0.7}


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3, in_channels=196, out_channels=64, num_layers=8)
    return both.reference, quiet(FluxFlexPipeline(**{**both.components, "scheduler": FluxFlowMatchScheduler()}))


def agree(pair, theirs=None, **ours):
    named = {f"flex_{name}": value for name, value in ours.items() if name.split("_")[0] in ("inpaint", "control")}
    return check(pair, {**named, **(theirs or {})}, ours)


@pytest.mark.parametrize("arguments", [{}, INPAINT, CONTROL, {**INPAINT, **CONTROL}], ids=["", "in", "ctl", "both"])
def test_inputs(pair, arguments):
    images = agree(pair, **arguments)
    if arguments:
        assert (images - our_images(pair[1])).abs().max() > 0.01


@pytest.mark.parametrize("stop", [0.0, 0.34, 0.99, 1.0])
def test_stop(pair, stop):
    agree(pair, **CONTROL, control_stop=stop)


def test_a_grey_mask(pair):
    agree(pair, **{**INPAINT, "inpaint_mask": Image.linear_gradient("L").convert("RGB")})


def test_true_cfg(pair):
    guided = {"negative_prompt": "ugly"}
    agree(pair, {**guided, "cfg_scale": 2.0}, **INPAINT, **CONTROL, **guided, true_cfg_scale=2.0)
