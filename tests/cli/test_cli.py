"""The `flux-ext` command."""

import argparse
import json
import os
import re

import pytest
from diffusers import FluxPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from diffusers_flux_ext.cli import demo as cli_demo
from diffusers_flux_ext.cli import main as command
from diffusers_flux_ext.cli.parsing import parse_entity, parse_positive, parse_size
from diffusers_flux_ext.testing import tiny_components


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        run("generate", "--help")
    assert stop.value.code == 0
    assert "flux-ext generate --model black-forest-labs/FLUX.1-dev" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["draw"], "invalid choice"),
        (["generate", "--prompt", "a", "--entity", "a dog"], "TEXT@LEFT,TOP,RIGHT,BOTTOM"),
        (["generate", "--prompt", "a", "--entity", "a dog@9,0,3,4"], "LEFT < RIGHT"),
        (["generate", "--prompt", "a", "--size", "big"], "N or WIDTHxHEIGHT"),
    ],
)
def test_a_wrong_command_line_exits_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "source, message",
    [
        (["--model", "nobody/x"], "--model cannot be loaded: "),
        (
            ["--lora", "nobody/x", "--lora-weight-name", "y.safetensors"],
            "--lora: `y.safetensors` of the repository `nobody/x`",
        ),
    ],
)
def test_work_that_fails_says_so_in_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, source, message):
    monkeypatch.chdir(tmp_path)
    assert run("generate", "--prompt", "a red circle", *source) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"flux-ext generate: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_target_that_is_not_replaced_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusers_flux_ext.jobs.JobRunner.run", lambda *_, **__: pytest.fail("it was loaded"))
    os.mkfifo(tmp_path / "pipe.png")
    assert run("generate", "--prompt", "a red circle", "--out", tmp_path / "pipe.png") == 1
    assert "pipe.png` exists already and is a device, a pipe or the like" in capsys.readouterr().err


def test_generate_with_entities(tmp_path, capsys):
    out = tmp_path / "deep" / "shapes.png"
    code = run(
        "generate", "--prompt", "a white background", "--entity", "a red circle@0,0,0.5,1",
        "--entity", "a blue star@64,0,128,128", "--steps", 2, "--out", out
    )  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Image.open(out).size == (128, 128)
    assert [path.name for path in out.parent.iterdir()] == ["shapes.png"]


def test_generate_follows_seed_and_size(tmp_path):
    pictures = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        path = tmp_path / f"{name}.png"
        assert (
            run("generate", "--prompt", "a red circle", "--steps", 2, "--seed", seed, "--size", "64x96", "--out", path)
            == 0
        )
        pictures.append(Image.open(path).convert("RGB"))
    assert pictures[0].size == (64, 96)
    assert pictures[0].tobytes() == pictures[1].tobytes() != pictures[2].tobytes()


def test_schnell_has_defaults_of_its_own(tmp_path):
    components = tiny_components(0, guidance_embeds=False)
    FluxPipeline(**components).save_pretrained(tmp_path / "schnell")
    saved = tmp_path / "job.json"
    arguments = ["--model", tmp_path / "schnell", "--prompt", "a cat", "--save-job", saved, "--dry-run"]
    assert run("generate", *arguments) == 0
    assert json.loads(saved.read_text())["call"] == {
        "prompt": "a cat", "num_inference_steps": 4, "max_sequence_length": 256
    }  # fmt: skip


def test_demo_writes_a_contact_sheet(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cli_demo.TINY_CALL, "num_inference_steps", 2)
    with_lora, draw = [], cli_demo.draw

    def watched(pipe, *args, **kwargs):
        layers = [part for part in pipe.transformer.modules() if isinstance(part, BaseTunerLayer)]
        with_lora.append({not layer.disable_adapters for layer in layers})
        return draw(pipe, *args, **kwargs)

    monkeypatch.setattr(cli_demo, "draw", watched)
    assert run("demo", "--out", tmp_path / "demo", "--seed", 3) == 0
    path = capsys.readouterr().out.strip()
    assert re.search(r"contact_sheet\.png$", path)
    assert Image.open(path).width > 3 * 256
    assert len(list((tmp_path / "demo").glob("scene_*.png"))) == 4
    # The base model, which knows nothing of regions, and the one of EliGen.
    assert with_lora == [{False}, {True}]


def test_parse_entity():
    assert parse_entity("me@home@0.1,0.2,0.5,0.9") == ("me@home", (0.1, 0.2, 0.5, 0.9))


@pytest.mark.parametrize("box", ["0,0,inf,1", "nan,0,1,1", "-inf,0,1,1", "0,0,1e400,1"])
def test_boxes_are_finite(box):
    with pytest.raises(argparse.ArgumentTypeError, match="is not TEXT@LEFT"):
        parse_entity(f"a cat@{box}")


@pytest.mark.parametrize("size", ["100000000", "16385x64", "9" * 5000, "\u0661\u0662\u0663", "\u00b2", "-64"])
def test_sizes_are_bounded(size):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size") as caught:
        parse_size(size)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("count", ["0", "1.5", "10000000", "9" * 5000, "\u0663"])
def test_counts_are_bounded(count):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 1"):
        parse_positive(count)


def test_parse_size():
    assert parse_size("512") == (512, 512)
    assert parse_size("640x480") == (640, 480)
