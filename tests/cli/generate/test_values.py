"""Values of flags as entries of a job."""

import argparse

import pytest

from diffusers_flux_ext.cli.generate import values


@pytest.mark.parametrize(
    "text, expected",
    [
        ("me@home@0.1,0.2,0.5,0.9", ("me@home", [0.1, 0.2, 0.5, 0.9])),
        ("a cat @cat.png", ("a cat", "cat.png")),
        ("a sign that says hi@b.com@masks/sign.JPG", ("a sign that says hi@b.com", "masks/sign.JPG")),
    ],
)
def test_entities_have_boxes_or_masks(text, expected):
    assert values.entity(text) == expected


@pytest.mark.parametrize("text", ["a cat", "a cat@", "a cat@cat.txt", "@cat.png", "a@1,2,3", "a@5,0,1,9"])
def test_wrong_entities(text):
    with pytest.raises(argparse.ArgumentTypeError, match="TEXT@LEFT"):
        values.entity(text)


def test_regions_are_boxes_or_files():
    assert values.region("0,0.25,1,1") == [0.0, 0.25, 1.0, 1.0]
    assert values.region("mask.png") == "mask.png"
    for wrong in ("1,2,3", "0,0,0,1", "nan,0,1,1"):
        with pytest.raises(argparse.ArgumentTypeError):
            values.region(wrong)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.safetensors", {"path": "a.safetensors"}),
        ("a.safetensors@0.5", {"path": "a.safetensors", "weight": 0.5}),
        ("owner/name@-1", {"path": "owner/name", "weight": -1.0}),
        ("style@2.safetensors", {"path": "style@2.safetensors"}),
        ("style@2.safetensors@2", {"path": "style@2.safetensors", "weight": 2.0}),
        ("a@nan", {"path": "a@nan"}),
    ],
)
def test_loras_have_weights(text, expected):
    assert values.lora(text) == expected


def test_caches_have_thresholds():
    assert values.cache("tea") == {"name": "tea"}
    assert values.cache("tea=0.25") == {"name": "tea", "threshold": 0.25}
    assert values.cache("none") is None
    with pytest.raises(argparse.ArgumentTypeError, match="finite"):
        values.cache("tea=much")


def test_conditions_hold_anything():
    text = (
        "ReduxImages:images=[a, b.png],region=[null, [0, 0, 0.5, 1]],scale=5e-1,image_embedder.path=redux,"
        "prompt='one, two=2',image=data:image/png;base64,iVBORw=="
    )
    assert values.condition(text) == {
        "type": "ReduxImages",
        "images": ["a", "b.png"],
        "region": [None, [0, 0, 0.5, 1]],
        "scale": 0.5,
        "image_embedder": {"path": "redux"},
        "prompt": "one, two=2",
        "image": "data:image/png;base64,iVBORw==",
    }
    assert values.condition("AttributeValues:values={size: 0.5, light: 1}")["values"] == {"size": 0.5, "light": 1}
    assert values.condition("NexusGenEmbedding:prompt=it's red, and blue,language=en") == {
        "type": "NexusGenEmbedding", "prompt": "it's red, and blue", "language": "en"
    }  # fmt: skip
    assert values.condition("FlexControl") == {"type": "FlexControl"}


@pytest.mark.parametrize("text", ["", "a b:scale=1", ":scale=1", "Redux:scale", "Redux:a=[1"])
def test_wrong_conditions(text):
    with pytest.raises(argparse.ArgumentTypeError):
        values.condition(text)


def test_put_makes_what_is_on_the_way():
    content = {"model": "tiny", "conditions": [{"type": "A"}]}
    values.put(content, "model.dtype", "float32")
    values.put(content, "conditions.0.net.path", "x")
    values.put(content, "memory.vram_gib", 4)
    assert content == {
        "model": {"path": "tiny", "dtype": "float32"},
        "conditions": [{"type": "A", "net": {"path": "x"}}],
        "memory": {"vram_gib": 4},
    }
    for wrong in ("conditions.1.net", "conditions.last", "memory.vram_gib.a"):
        with pytest.raises(ValueError, match="cannot be set"):
            values.put(content, wrong, 1)
