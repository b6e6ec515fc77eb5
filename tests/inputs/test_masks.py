"""Region masks of every kind land on the same pixels and tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusers_flux_ext import Canvas
from diffusers_flux_ext.inputs.masks import list_regions, mask_to_pixels, mask_to_tokens


CANVAS = Canvas(64, 96, 1, 1, torch.device("cpu"), torch.float32)
BOX = (16, 0, 50, 40)


def array(box=BOX):
    inside = np.zeros((64, 96), dtype=bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return inside


def alpha_picture(inside):
    picture = Image.new("RGBA", (96, 64), (10, 10, 10, 0))
    picture.putalpha(Image.fromarray(inside.astype(np.uint8) * 255))
    return picture


INSIDE = array()
GRAY = INSIDE.astype(np.uint8) * 255
KINDS = {
    "box": BOX,
    "float box": tuple(float(value) for value in BOX),
    "list box": list(BOX),
    "fractions": (16 / 96, 0.0, 50 / 96, 40 / 64),
    "RGB": Image.fromarray(GRAY).convert("RGB"),
    "L": Image.fromarray(GRAY),
    "1": Image.fromarray(GRAY).convert("1"),
    "P": Image.fromarray(GRAY).convert("P"),
    "LA": Image.fromarray(GRAY).convert("LA"),
    "RGBA, opaque": Image.fromarray(GRAY).convert("RGBA"),
    "RGBA, alpha": alpha_picture(INSIDE),
    "I": Image.fromarray(INSIDE.astype(np.int32) * 65535),
    "I;16": Image.fromarray(INSIDE.astype(np.uint16) * 65535),
    "F": Image.fromarray(INSIDE.astype(np.float32)),
    "bool array": INSIDE,
    "uint8 array": GRAY,
    "0/1 array": INSIDE.astype(np.int64),
    "float array": INSIDE.astype(np.float32),
    "color array": np.stack([GRAY] * 3, axis=-1),
    "bool tensor": torch.from_numpy(INSIDE),
    "bfloat16 tensor": torch.from_numpy(INSIDE).to(torch.bfloat16),
    "channels first array": np.stack([GRAY] * 3),
    "one channel array": GRAY[None],
    "channels last tensor": torch.from_numpy(np.stack([GRAY] * 3, axis=-1)),
    "batch of one tensor": torch.from_numpy(GRAY)[None, None],
    "batch of one array": GRAY[None, ..., None],
    "color tensor": torch.from_numpy(GRAY).expand(3, -1, -1),
}


@pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS)
def test_every_kind_means_the_same(mask):
    assert torch.equal(mask_to_pixels(mask, CANVAS), torch.from_numpy(INSIDE))
    tokens = mask_to_tokens(mask, CANVAS).view(4, 6)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    # The box's right edge at 50 passes no sampled latent pixel beyond 48; its lower edge at 40 cuts row 2 in half.
    expected[:3, 1:3] = True
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.clone], ids=["array", "tensor"])
def test_a_batch_is_one_mask_per_prompt(kind):
    masks = torch.stack([torch.from_numpy(INSIDE), torch.from_numpy(~INSIDE)])[:, None].float()
    read = [mask_to_pixels(mask, CANVAS) for mask in list_regions(kind(masks))]
    assert torch.equal(torch.stack(read), masks[:, 0] > 0)


def test_any_latent_pixel_of_a_token_counts():
    inside = np.zeros((64, 96), dtype=bool)
    inside[24:32, 40:48] = True
    tokens = mask_to_tokens(inside, CANVAS).view(4, 6)
    assert tokens.nonzero().tolist() == [[1, 2]]


def test_another_aspect_ratio_is_stretched():
    picture = Image.new("L", (10, 10))
    picture.paste(255, (0, 0, 5, 10))
    assert mask_to_tokens(picture, CANVAS).view(4, 6)[:, :3].all()
    assert not mask_to_tokens(picture, CANVAS).view(4, 6)[:, 3:].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 80), st.integers(0, 50), st.integers(1, 96), st.integers(1, 64))
def test_a_box_is_the_picture_of_its_rectangle(left, top, width, height):
    box = (left, top, min(left + width, 96), min(top + height, 64))
    if max(box) <= 1:
        return
    assert torch.equal(mask_to_tokens(box, CANVAS), mask_to_tokens(Image.fromarray(array(box)), CANVAS))


def test_a_box_may_reach_over_the_edge():
    assert torch.equal(mask_to_pixels((80, 0, 200, 64), CANVAS), mask_to_pixels((80, 0, 96, 64), CANVAS))


@pytest.mark.parametrize(
    "mask, error, message",
    [
        ((10, 10, 10, 20), ValueError, "left < right"),
        ((-5, 0, 10, 20), ValueError, "does not lie on the canvas of 96 x 64"),
        ((96, 0, 100, 20), ValueError, "does not lie on the canvas"),
        (np.zeros((2, 2, 2, 2)), ValueError, r"shape \(2, 2, 2, 2\)"),
        (np.zeros((8, 9, 10)), ValueError, "1 to 4 channels"),
        (np.zeros((0, 4)), ValueError, r"shape \(0, 4\)"),
        ("mask.png", TypeError, "mask.png"),
        ((1, 2, 3), TypeError, "box"),
    ],
)
def test_bad_masks(mask, error, message):
    with pytest.raises(error, match=message):
        mask_to_tokens(mask, CANVAS)


def test_canvas_repeats_per_prompt_inputs():
    canvas = Canvas(32, 32, 2, 3, torch.device("cpu"), torch.float32)
    assert canvas.per_sample(torch.tensor([1, 2])).tolist() == [1, 1, 1, 2, 2, 2]
    assert canvas.per_sample(torch.tensor([7])).tolist() == [7]
    assert (canvas.grid, canvas.num_tokens, canvas.num_samples) == ((2, 2), 4, 6)
    with pytest.raises(ValueError, match="3 samples.*2 prompts"):
        canvas.per_sample(torch.zeros(3))
