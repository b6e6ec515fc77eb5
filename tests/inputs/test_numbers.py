"""Numbers, tensors, masks and images that are NaN, infinite or out of range, and negative prompts without effect."""

import numpy as np
import pytest
import torch

from diffusers_flux_ext import Canvas, FluxConditionedPipeline
from diffusers_flux_ext.inputs.images import read_image
from diffusers_flux_ext.inputs.masks import read_mask
from diffusers_flux_ext.inputs.numbers import check_finite, read_count, read_number, read_numbers
from diffusers_flux_ext.pipeline import call_inputs
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline


CANVAS = Canvas(32, 48, 1, 1, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 10**400, True, "1", None, 1j, [1.0]])
def test_what_is_not_a_number_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="`scale` must be a (finite )?number"):
        read_number("`scale`", value)


def test_numbers_of_every_kind():
    kinds = [1, 1.0, np.float32(1), np.int64(1), torch.tensor(1.0), np.array(1.0)]
    assert [read_number("`scale`", value) for value in kinds] == [1.0] * 6
    assert read_count("`steps`", np.int64(3), 1, 5) == 3
    assert read_numbers("`scale`", 0.5, 3, "per block") == [0.5] * 3
    with pytest.raises(ValueError, match="2 numbers, but 3 are needed"):
        read_numbers("`scale`", [1, 2], 3, "per block")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int16, torch.bool])
def test_tensors_of_every_type_are_compared_by_their_values(dtype):
    tensor = torch.tensor([0, 1]).to(dtype)
    check_finite("`scale`", tensor, 0, 1)
    with pytest.raises(ValueError, match="`scale` must be from 0 to 0.5 everywhere, but its values go from 0 to 1"):
        check_finite("`scale`", tensor, 0, 0.5)


def test_a_value_that_float32_cannot_hold_is_finite():
    check_finite("`scale`", torch.tensor([1e300], dtype=torch.float64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e9])
@pytest.mark.parametrize("kind", [torch.full, np.full])
def test_masks_have_values_of_masks(kind, value):
    with pytest.raises(ValueError, match="`mask` must have values from 0 to 1, 255 or 65535"):
        read_mask(kind((32, 48), value), CANVAS, "`mask`")


def test_complex_masks_are_refused():
    with pytest.raises(TypeError, match="`mask` must be"):
        read_mask(torch.ones(32, 48, dtype=torch.complex64), CANVAS, "`mask`")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 255.0, -7.0])
@pytest.mark.parametrize("make", [torch.full, np.full])
def test_images_have_values_of_images(make, value):
    with pytest.raises(ValueError, match="`image`, an image in floats from 0 to 1"):
        read_image("`image`", make((32, 48, 3) if make is np.full else (3, 32, 48), value))


def test_a_boolean_image_is_black_and_white():
    assert read_image("`image`", torch.ones(3, 4, 4, dtype=torch.bool)).max() == 1
    assert read_image("`image`", np.ones((4, 4, 3), dtype=bool)).max() == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("guidance_scale", float("nan")),
        ("true_cfg_scale", float("inf")),
        ("sigmas", [1.0, float("nan")]),
        ("latents", torch.full((1, 6, 64), float("nan"))),
        ("image", torch.full((1, 3, 32, 48), float("nan"))),
        ("prompt_embeds", torch.full((1, 5, 40), float("inf"))),
    ],
)
def test_what_is_not_finite_is_refused_before_any_model_runs(name, value):
    pipe = tiny_pipeline(FluxConditionedPipeline, text_encoder=None, text_encoder_2=None)
    with pytest.raises(ValueError, match=f"`{name}`"):
        pipe(**call_kwargs(**{name: value}))


def test_a_callback_may_return_nothing():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    plain = pipe(**call_kwargs()).images
    assert torch.equal(pipe(**call_kwargs(callback_on_step_end=lambda *_: None)).images, plain)
    with pytest.raises(TypeError, match="`callback_on_step_end` must return a dictionary"):
        pipe(**call_kwargs(callback_on_step_end=lambda *_: 5))


def test_a_negative_prompt_without_effect_is_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr(call_inputs.logger, "warning", said.append)
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe(**call_kwargs(negative_prompt="ugly", num_inference_steps=1))
    assert ["Set `true_cfg_scale` above 1" in message for message in said] == [True]
    pipe(**call_kwargs(negative_prompt="ugly", true_cfg_scale=2.0, num_inference_steps=1))
    pipe(**call_kwargs(negative_prompt="", num_inference_steps=1))
    assert len(said) == 1
