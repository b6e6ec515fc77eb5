"""`flux-ext plan`."""

import json

import pytest
import torch

from diffusers_flux_ext import tiny_flux_path
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.methods.catalog import flux_models, on_meta, plan_methods
from diffusers_flux_ext.methods.releases import released_modules, releases


def test_flux_dev_with_methods(capsys):
    assert main(["plan", "--vram", "8", "--method", "eligen=4", "--method", "controlnet", "--storage", "fp8"]) == 0
    text = capsys.readouterr().out
    assert "Budget 8 GiB" in text
    assert f"{512 * 5} text and 4096 image tokens" in text
    assert "| controlnet " in text
    assert "float8_e4m3fn" in text


def test_a_folder_and_json(capsys):
    arguments = ["plan", "--model", tiny_flux_path(), "--vram", "1", "--size", "128x64", "--text-tokens", "32"]
    assert main([*arguments, "--method", "eligen", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"], found["text_tokens"]) == (128, 64, 32 + 3 * 512)
    assert found["components"]["transformer"]["level"] == "whole"


def test_the_embedded_model_has_its_own_sizes(capsys):
    assert main(["plan", "--model", "tiny", "--vram", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"], found["text_tokens"]) == (128, 128, 32)


def test_an_impossible_budget_exits_with_1(capsys):
    assert main(["plan", "--model", tiny_flux_path(), "--vram", "0.01", "--size", "128"]) == 1
    assert "the smallest that works is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--method", "eligen=no"], ["--vram", "-1"], ["--size", "big"], ["--storage", "fp4"]]
)
def test_a_wrong_command_line_exits_with_2(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", *wrong])
    assert stop.value.code == 2


def test_an_unknown_method_names_the_known_ones(capsys):
    assert main(["plan", "--method", "magic"]) == 2
    assert "Choose from ['attribute-control'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--method", "inpaint=2"], "do not take a number"),
        (["--method", "fill", "--method", "flex"], "need different transformers"),
        (["--size", "1000"], "a multiple of 16"),
    ],
)
def test_what_cannot_be_planned_exits_with_2(wrong, message, capsys):
    assert main(["plan", *wrong]) == 2
    assert message in capsys.readouterr().err


def test_editing_counts_the_picture_and_the_instruction(capsys):
    assert main(["plan", "--vram", "8", "--size", "512", "--method", "step1x-edit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text_tokens"], found["image_tokens"]) == (640, 2 * 32 * 32)
    assert found["components"]["connector"]["phase"] == "loop"
    assert found["components"]["mllm"]["phase"] == "mllm"


def test_all_methods_are_listed_and_planned_together(capsys):
    assert main(["plan", "--list-methods"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in releases())
    names = [name for name, release in releases().items() if not release.transformer]
    plan = plan_methods([(name, None) for name in names], budget_gib=12, height=512, width=512)
    modules = {name for method in names for name in released_modules(method)}
    assert modules <= {each.name for each in plan.components}
    assert plan.peak_gib <= 12


def test_step1x_edit_brings_its_models_prompt_and_reference(capsys):
    assert main(["plan", "--vram", "16", "--storage", "fp8", "--method", "step1x-edit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text_tokens"], found["image_tokens"]) == (640, 8192)
    assert {name: found["components"][name]["phase"] for name in ("mllm", "connector")} == {
        "mllm": "mllm", "connector": "loop"
    }  # fmt: skip


def test_a_method_may_change_the_transformer():
    assert flux_models(**releases()["fill"].transformer)["transformer"].x_embedder.in_features == 384


def test_planning_leaves_the_default_data_type_alone():
    seen = []

    def make():
        seen.append(torch.get_default_dtype())
        return torch.nn.Linear(2, 2)

    module = on_meta(make)
    assert seen == [torch.float32]
    assert (module.weight.dtype, module.weight.device.type) == (torch.bfloat16, "meta")


def test_quantised_models(capsys):
    arguments = ["--quantization", "gguf-q4_k", "--quantization", "text_encoder_2=int8", "--json"]
    assert main(["plan", "--vram", "8", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)["components"]
    assert 6 < found["transformer"]["gib"] < 6.6
    assert 4.3 < found["text_encoder_2"]["gib"] < 6
    assert main(["plan", "--quantization", "nunchaku"]) == 2
    assert "GGUF files, torchao" in capsys.readouterr().err
