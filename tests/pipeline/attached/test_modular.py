"""Blocks of modular pipelines with conditions draw what `FluxConditionedPipeline` draws, bit for bit."""

from typing import Any

import pytest
import torch
from diffusers import FluxAutoBlocks, FluxKontextAutoBlocks

from benchmarks.support.conditions import CASES
from benchmarks.support.tiny.controlnet import PICTURE
from diffusers_flux_ext import FluxConditionedPipeline, ReferenceImages, condition_blocks
from diffusers_flux_ext.testing import call_kwargs, different, quiet, tiny_components


TOGETHER = ("entities", "ip-adapter", "controlnet", "attributes", "inpaint")
IMAGE = PICTURE.resize((48, 32))
COMPONENTS: dict[str, Any] = tiny_components(0)


def modular(blocks: Any) -> Any:
    pipe = blocks.init_pipeline()
    pipe.update_components(**COMPONENTS)
    return pipe


@pytest.fixture(scope="module")
def ours():
    return quiet(FluxConditionedPipeline(**COMPONENTS))


@pytest.fixture(scope="module")
def pipe():
    return modular(condition_blocks(FluxAutoBlocks()))


@pytest.fixture(scope="module")
def kontext():
    return modular(condition_blocks(FluxKontextAutoBlocks()))


def build(names):
    return [CASES[name].build() for name in names]


CALLS: dict[str, dict[str, Any]] = {
    "text to image": {},
    "image to image": {"image": IMAGE, "strength": 0.7},
    "batch": {"prompt": ["a cat", "a red dog"], "num_images_per_prompt": 2},
    "image to image, batch": {"prompt": ["a cat", "a red dog"], "image": [IMAGE, IMAGE], "strength": 0.7},
    "text length": {"max_sequence_length": 24, "guidance_scale": 2.0},
}


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
def test_all_kinds_of_calls(pipe, ours, arguments):
    images = pipe(**call_kwargs(conditions=build(TOGETHER), **arguments), output="images")
    assert torch.equal(images, ours(**call_kwargs(conditions=build(TOGETHER), **arguments)).images)


@pytest.mark.parametrize("names", [("entities", "inpaint"), ("nexus-gen",), ("redux", "controlnet")])
def test_kontext(kontext, ours, names):
    given = {"image": IMAGE, "_auto_resize": False, "max_area": 32 * 48}
    images = kontext(**call_kwargs(conditions=build(names), **given), output="images")
    reference = ReferenceImages([IMAGE], preferred_size=False)
    assert torch.equal(images, ours(**call_kwargs(conditions=[reference, *build(names)])).images)


def test_kontext_without_an_image(kontext, ours):
    images = kontext(**call_kwargs(conditions=build(["references"])), output="images")
    assert torch.equal(images, ours(**call_kwargs(conditions=build(["references"]))).images)


def test_without_conditions_they_are_the_blocks_of_diffusers(pipe):
    expected = modular(FluxAutoBlocks())(**call_kwargs(), output="images")
    assert torch.equal(pipe(**call_kwargs(), output="images"), expected)
    assert different(pipe(**call_kwargs(conditions=build(["inpaint"])), output="images"), expected)
    assert torch.equal(pipe(**call_kwargs(conditions=[]), output="images"), expected)
    latents = pipe(**call_kwargs(conditions=build(["entities"]), output_type="latent"), output="images")
    assert latents.shape == (1, 16, 4, 6)


def test_the_blocks_say_what_they_take():
    blocks, made = FluxAutoBlocks(), condition_blocks(FluxAutoBlocks())
    names = [each.name for each in made.inputs]
    assert set(names) - {each.name for each in blocks.inputs} == {"conditions"}
    assert len(names) == len(set(names))
    assert made.component_names == blocks.component_names
    assert "conditions" in made.doc
    assert type(made) is FluxAutoBlocks


def test_refusals(pipe, kontext):
    with pytest.raises(ValueError, match=r"FillMask adds \[320\] channels to the canvas, and FluxModularPipeline"):
        pipe(**call_kwargs(conditions=build(["fill"])))
    with pytest.raises(ValueError, match="ReferenceImages decides .* the image of FluxKontextModularPipeline"):
        kontext(**call_kwargs(conditions=build(["references"]), image=IMAGE, _auto_resize=False, max_area=32 * 48))
    with pytest.raises(TypeError, match=r"takes conditions such as .*holds \['str'\]"):
        pipe(**call_kwargs(conditions=["a cat"]))
    with pytest.raises(TypeError, match="`blocks` must be blocks of FLUX.1 with the stages .* got"):
        condition_blocks(FluxAutoBlocks().sub_blocks["denoise"])
    with pytest.raises(TypeError, match="`blocks` must be blocks of FLUX.1"):
        condition_blocks("FluxAutoBlocks")
    with pytest.raises(ValueError, match="take conditions already"):
        condition_blocks(condition_blocks(FluxAutoBlocks()))
    assert not pipe.transformer._forward_hooks
