"""Flex.2: laws, batches, saving and inputs."""

import pytest
import torch

from benchmarks.support.tiny.controlnet import OTHER_PICTURE, PICTURE
from diffusers_flux_ext import FlexControl, FluxConditionedPipeline, FluxFlexPipeline
from diffusers_flux_ext.testing import call_kwargs, quiet, seeded, tiny_pipeline, tiny_transformer


LEFT, TOP = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5)
BOTH = {"inpaint_image": PICTURE, "inpaint_mask": LEFT, "control_image": OTHER_PICTURE}


@pytest.fixture(scope="module")
def pipe():
    wide = tiny_transformer(0, in_channels=196, out_channels=64, num_layers=8)
    return tiny_pipeline(FluxFlexPipeline, transformer=wide)


def draw(pipe, **arguments):
    return pipe(**call_kwargs(**{"num_inference_steps": 2, **arguments})).images


def test_strength_zero_is_no_control_and_a_full_mask_no_picture(pipe):
    plain = draw(pipe)
    assert torch.equal(draw(pipe, control_image=PICTURE, control_strength=0), plain)
    assert torch.equal(draw(pipe, inpaint_image=PICTURE, inpaint_mask=(0.0, 0.0, 1.0, 1.0)), plain)
    assert (draw(pipe, **BOTH) - plain).abs().max() > 1e-3


def test_the_condition_is_the_pipeline(pipe):
    conditioned = quiet(FluxConditionedPipeline.from_pipe(pipe))
    assert torch.equal(draw(conditioned, conditions=[FlexControl(**BOTH)]), draw(pipe, **BOTH))


def test_batches(pipe):
    latents, prompts = torch.randn(4, 6, 64, generator=seeded(5)), ["a cat", "a dog"]
    pictures, masks = [PICTURE, OTHER_PICTURE], [LEFT, TOP]
    several = {"inpaint_image": pictures, "inpaint_mask": masks, "control_image": PICTURE}
    together = draw(pipe, prompt=prompts, num_images_per_prompt=2, latents=latents, **several)
    for index in range(4):
        prompt = index // 2
        one = {"inpaint_image": pictures[prompt], "inpaint_mask": masks[prompt], "control_image": PICTURE}
        alone = draw(pipe, prompt=prompts[prompt], latents=latents[index : index + 1], **one)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)


def test_a_saved_pipeline_draws_the_same_also_in_bfloat16(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = quiet(FluxFlexPipeline.from_pretrained(tmp_path))
    assert torch.equal(draw(loaded, **BOTH), draw(pipe, **BOTH))
    assert torch.isfinite(draw(loaded.to(torch.bfloat16), **BOTH)).all()


@pytest.mark.parametrize("name", ["control_strength", "control_stop"])
def test_numbers_are_numbers(name):
    with pytest.raises(TypeError, match=f"`{name}` .*must be a number .*got 'half'"):
        FlexControl(**{name: "half"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inpaint_image": PICTURE}, "belong together; one is missing"),
        ({"inpaint_mask": LEFT}, "belong together; one is missing"),
        ({"control_stop": 1.2}, "`control_stop` must be .*from 0 to 1, got 1.2"),
        ({"control_strength": float("nan")}, "finite number .*got nan"),
        ({"conditions": [FlexControl()]}, "FlexControl and FlexControl decides"),
        ({"control_image": [PICTURE] * 2, "prompt": ["a", "b", "c"]}, "2 samples, but there are 3 prompts"),
    ],
)
def test_bad_inputs(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, **arguments)
