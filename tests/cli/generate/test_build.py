"""From flags to a job's entries."""

import json
from pathlib import Path

import pytest

from diffusers_flux_ext.cli.errors import CommandLineError
from diffusers_flux_ext.cli.generate.build import flag_of, with_flags
from diffusers_flux_ext.cli.generate.start import draft
from diffusers_flux_ext.cli.main import build_parser
from diffusers_flux_ext.tiny import TINY_CALL


def parse(*arguments):
    return build_parser().parse_args(["generate", *map(str, arguments)])


def content_of(*arguments):
    return draft(parse("--prompt", "p", *arguments)).content


def conditions_of(*arguments):
    return content_of(*arguments)["conditions"]


def test_tiny_has_defaults_that_flags_replace():
    assert content_of("--steps", 3) == {
        "version": 1,
        "model": {"path": "tiny"},
        "loras": [],
        "call": {**TINY_CALL, "seed": 0, "prompt": "p", "num_inference_steps": 3},
        "output": {"format": "png"},
    }
    assert "negative_prompt" not in content_of("--true-cfg", 1)["call"]
    assert content_of("--true-cfg", 3, "--negative-prompt", "n")["call"]["negative_prompt"] == "n"


def test_entities_bring_tinys_lora_unless_told_otherwise():
    entity = ["--entity", "a@0,0,0.5,1", "--entity", "b@m.png"]
    found = content_of(*entity)
    assert found["conditions"] == [
        {"type": "EntityRegions", "prompts": ["a", "b"], "masks": [[0.0, 0.0, 0.5, 1.0], "m.png"]}
    ]
    assert found["loras"] == [{"path": "tiny", "weight_name": "tiny_flux_eligen_lora.safetensors"}]
    assert content_of(*entity, "--lora", "none")["loras"] == []
    assert content_of(*entity, "--lora", "x@2", "--lora", "y")["loras"] == [
        {"path": "x", "weight": 2.0},
        {"path": "y"},
    ]


def test_weight_names_belong_to_loras_in_order():
    loras = content_of("--lora", "a/b", "--lora", "c/d", "--lora-weight-name", "x", "--lora-weight-name", "y")["loras"]
    assert [lora["weight_name"] for lora in loras] == ["x", "y"]
    with pytest.raises(CommandLineError, match="2 times for 3; give one for each"):
        content_of("--lora", "a", "--lora", "b", "--lora", "c", "--lora-weight-name", "x", "--lora-weight-name", "y")


def test_each_control_image_is_a_condition_and_one_value_goes_to_all():
    found = conditions_of(
        "--model", "m", "--control", "a.png", "--control", "b.png", "--controlnet", "net", "--control-scale", 0.5,
        "--control-scale", 1,
    )  # fmt: skip
    assert found == [
        {"type": "ControlNetImage", "image": "a.png", "controlnet": {"path": "net"}, "scale": 0.5},
        {"type": "ControlNetImage", "image": "b.png", "controlnet": {"path": "net"}, "scale": 1.0},
    ]
    assert conditions_of("--control", "a.png")[0]["controlnet"] == {"path": "tiny"}


def test_seeds_and_images():
    assert content_of("--seed", 3)["call"]["seed"] == 3
    several = content_of("--seed", 3, 4)["call"]
    assert (several["seed"], several["num_images_per_prompt"]) == ([3, 4], 2)
    assert content_of("--num-images", 3)["call"]["num_images_per_prompt"] == 3
    with pytest.raises(CommandLineError, match="--num-images is 3, but --seed has 2"):
        content_of("--num-images", 3, "--seed", 1, 2)


def test_an_image_belongs_to_what_inpaints_and_to_the_call_with_a_strength():
    inpainting = content_of("--image", "a.png", "--mask", "0,0,1,0.5")
    assert inpainting["conditions"] == [{"type": "InpaintRegion", "mask": [0.0, 0.0, 1.0, 0.5], "image": "a.png"}]
    assert "image" not in inpainting["call"]
    both = content_of("--image", "a.png", "--inpaint-mask", "m.png", "--strength", 0.5)
    assert (both["call"]["image"], both["conditions"][0]["image"]) == ("a.png", "a.png")
    assert content_of("--image", "a.png", "--fill-mask", "m.png")["conditions"][0]["type"] == "FillMask"
    assert content_of("--image", "a.png")["call"]["image"] == "a.png"


def test_modules_memory_and_everything_else():
    found = content_of(
        "--reference", "a.png", "--reference", "b.png", "--attribute", "size=0.5", "--attribute", "light=1",
        "--attribute-encoder", "tiny", "--component", "mllm=qwen", "--vram", 8, "--cache", "tea=0.3",
        "--pipeline", "P", "--condition", "FlexControl:control_stop=0.4", "--set", "call.sigmas=[1, 0.5]",
        "--out", "a.jpg",
    )  # fmt: skip
    assert found["conditions"] == [
        {"type": "ReferenceImages", "images": ["a.png", "b.png"]},
        {"type": "AttributeValues", "values": {"size": 0.5, "light": 1.0}, "encoder": {"path": "tiny"}},
        {"type": "FlexControl", "control_stop": 0.4},
    ]
    assert found["components"] == {"mllm": {"path": "qwen"}}
    assert found["memory"] == {"vram_gib": 8.0, "cache": {"name": "tea", "threshold": 0.3}}
    assert (found["pipeline"], found["output"], found["call"]["sigmas"]) == ("P", {"format": "jpeg"}, [1, 0.5])
    with pytest.raises(CommandLineError, match="--set: `conditions.7.a` cannot be set"):
        content_of("--set", "conditions.7.a=1")


def test_flags_change_a_job_and_keep_the_rest():
    content = {
        "model": "m",
        "conditions": [{"type": "EntityRegions", "prompts": ["x"], "masks": ["m.png"]}, {"type": "InpaintRegion"}],
        "call": {"prompt": "old", "guidance_scale": 2.0},
    }
    before = json.dumps(content)
    found = with_flags(content, parse("--prompt", "new", "--entity", "y@0,0,1,1", "--base", "b"), Path())
    assert found["model"] == {"path": "m", "base": "b"}
    assert found["conditions"] == [
        {"type": "EntityRegions", "prompts": ["y"], "masks": [[0.0, 0.0, 1.0, 1.0]]}, {"type": "InpaintRegion"}
    ]  # fmt: skip
    assert found["call"] == {"prompt": "new", "guidance_scale": 2.0}
    assert json.dumps(content) == before


def test_paths_of_flags_are_seen_from_here_whatever_the_jobs_folder(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "here.png").touch()
    monkeypatch.chdir(tmp_path)
    args = parse("--reference", "here.png", "--reference", "there.png", "--lora", "here.png@2", "--mask", "here.png")
    found = with_flags({}, args, Path("jobs"))
    assert found["conditions"][1]["images"] == ["../here.png", "there.png"]
    assert found["conditions"][0]["mask"] == "../here.png"
    assert found["loras"] == [{"path": "../here.png", "weight": 2.0}]


def test_fields_are_named_by_their_flags():
    content = {"conditions": [{"type": "EntityRegions"}, {"type": "ControlNetImage"}]}
    assert flag_of("call.width", content) == "--size"
    assert flag_of("call.widths", content) is None
    assert flag_of("conditions.0.masks.1", content) == "--entity"
    assert flag_of("conditions.1.controlnet.path", content) == "--controlnet"
    assert flag_of("conditions.1.controlnet", content) == "--controlnet"
    assert flag_of("conditions.1", content) is None
    assert flag_of("call", content) is None
    assert flag_of("conditions.1.mode", content) is None
    assert flag_of("conditions.2.image", content) is None
    assert flag_of("loras.0.path", content) == "--lora"
