"""Inpainting: what masks may look like."""

import pytest
import torch

from benchmarks.support.tiny.controlnet import PICTURE
from diffusers_flux_ext import FluxConditionedPipeline, InpaintRegion
from diffusers_flux_ext.testing import call_kwargs, different, tiny_pipeline


BOXES = ((0, 0, 24, 32), (16, 8, 48, 32))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


def draw(pipe, mask):
    inputs = {"prompt": ["a cat", "a dog"], "num_inference_steps": 1}
    return pipe(**call_kwargs(conditions=[InpaintRegion(PICTURE, mask)], **inputs)).images


def tensor(*boxes):
    masks = torch.zeros(len(boxes), 1, 32, 48)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[:, top:bottom, left:right] = 1
    return masks


@pytest.mark.parametrize("boxes", [BOXES[:1], BOXES], ids=["one", "one per prompt"])
@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy], ids=["tensor", "array"])
def test_masks_in_a_batch_are_those_of_a_list(pipe, kind, boxes):
    images = draw(pipe, kind(tensor(*boxes)))
    assert torch.equal(images, draw(pipe, list(boxes)))
    assert different(images, draw(pipe, (0, 0, 48, 32)))


def test_more_masks_than_prompts(pipe):
    with pytest.raises(ValueError, match="3 samples, but there are 2 prompts"):
        draw(pipe, tensor(*BOXES, BOXES[0]))
