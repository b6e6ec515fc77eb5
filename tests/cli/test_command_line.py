"""What is wrong with a command line is said at once, in one line, in the command's own words."""

import argparse
import json
import logging
import subprocess
import sys

import pytest
import torch

from diffusers_flux_ext.cli import main as command
from diffusers_flux_ext.cli.env import describe_environment
from diffusers_flux_ext.cli.errors import in_flags
from diffusers_flux_ext.cli.quiet import quiet_libraries


A = ["generate", "--prompt", "a"]
WRONG: list[tuple[list[str], str]] = [
    (["generate"], "--prompt is missing"),
    (["convert", "nothing", "a", "b"], "no kind 'nothing'"),
    ([*A, "--out", "image.nothing"], "does not end in an image suffix"),
    ([*A, "--out", "folder.png"], "--out folder.png is a folder"),
    ([*A, "--out", "file/image.png"], "is a file, not a folder"),
    ([*A, "--model", "/nowhere/at/all"], "--model /nowhere/at/all: there is no such file or folder"),
    ([*A, "--model", "file"], "--model file is a file"),
    ([*A, "--model", "folder.png"], "has no model_index.json"),
    ([*A, "--lora", "missing.safetensors"], "--lora missing.safetensors: there is no such file"),
    ([*A, "--lora-weight-name", "x"], "no effect without --lora"),
    ([*A, "--entity", "a dog@500,0,600,50"], "does not lie on the canvas of 128 x 128"),
    ([*A, "--entity", "a dog@0,0,nan,50"], "TEXT@LEFT,TOP,RIGHT,BOTTOM"),
    ([*A, "--guidance", "nan"], "not a finite number"),
    ([*A, "--guidance", "-1"], "not a finite number at least 0"),
    ([*A, "--true-cfg", "high"], "not a finite number"),
    ([*A, "--true-cfg", "1", "--negative-prompt", "b"], "--negative-prompt has no effect"),
    ([*A, "--model", "a/b", "--negative-prompt", "b"], "--negative-prompt has no effect"),
    ([*A, "--seed", "-1"], "--seed"),
    ([*A, "--steps", "0"], "--steps"),
    ([*A, "--steps", "9" * 5000], "--steps"),
    ([*A, "--size", "100000000"], "--size"),
    ([*A, "--text-tokens", "513"], "a whole number from 1 to 512"),
    ([*A, "--device", "my card"], "--device my card is not a device"),
    ([*A, "--image", "missing.png"], "--image missing.png: there is no such image"),
    ([*A, "--reference", "missing.png"], "--reference missing.png: there is no such image"),
    ([*A, "--entity", "a dog@missing.png"], "there is no mask missing.png"),
    ([*A, "--inpaint-mask", "0,0,1,1"], "--inpaint-mask has no effect without --image"),
    ([*A, "--mask", "1,2,3"], "neither a box LEFT,TOP,RIGHT,BOTTOM nor the path of a mask"),
    ([*A, "--strength", "0.5"], "--strength has no effect without --image"),
    ([*A, "--strength", "1.5"], "--strength"),
    ([*A, "--controlnet", "tiny"], "--controlnet has no effect without --control"),
    ([*A, "--lora", "missing.safetensors@0.5"], "--lora missing.safetensors: there is no such file"),
    ([*A, "--attribute", "size"], "'size' is not NAME=NUMBER"),
    ([*A, "--component", "mllm="], "'mllm=' is not NAME=PATH"),
    ([*A, "--condition", "Redux:scale"], "'scale' is not FIELD=VALUE"),
    ([*A, "--condition", "scale=1"], "is not TYPE:FIELD=VALUE"),
    ([*A, "--set", "scale"], "'scale' is not FIELD=VALUE"),
    ([*A, "--cache", "tea=x"], "not a finite number"),
    ([*A, "--vram", "0"], "--vram"),
    ([*A, "--num-images", "0"], "--num-images"),
    ([*A, "--job", "missing.yaml"], "--job missing.yaml: there is no such file"),
    ([*A, "--save-job", "job.txt"], "does not end in .yaml"),
    ([*A, "--save-job", "nowhere/job.yaml"], "its folder does not exist"),
    (["run", "missing.jsonl", "--out", "out"], "there is no file or folder missing.jsonl"),
    (["run", "file"], "--out is missing"),
    (["run", "file", "--out", "file"], "is a file, not a folder"),
    (["describe", "missing.png", "--nexus-gen", "a/b"], "there is no image missing.png"),
    (["describe", "file", "--nexus-gen", "./nowhere"], "--nexus-gen ./nowhere: there is no such file or folder"),
    (["describe", "file"], "--nexus-gen"),
    (["describe", "file", "--nexus-gen", "a/b", "--question", " "], "--question is empty"),
    (["job", "check", "missing.yaml"], "there is no file missing.yaml"),
    (["job", "draw"], "invalid choice"),
    (["completion", "ash"], "invalid choice"),
    (["demo", "--out", "file"], "is a file, not a folder"),
    (["demo", "--seed", "x"], "--seed"),
    (["plan", "--size", "1000"], "a multiple of 16"),
    (["plan", "--vram", "inf"], "--vram"),
    (["plan", "--model", "./nowhere"], "--model ./nowhere: there is no such file or folder"),
    (["lora", "inspect", "missing"], "there is no file or folder missing"),
    (["lora", "convert", "file", "out"], "does not end in .safetensors"),
    (["lora", "convert", "file", "nowhere/out.safetensors"], "its folder does not exist"),
    (["lora", "convert", "file", "old.safetensors"], "give --overwrite"),
    (["lora", "merge", "file", "--weights", "1", "2", "--out", "o.safetensors"], "2 numbers for 1 LoRA files"),
    (["lora", "resize", "file", "--out", "o.safetensors"], "give --rank"),
    (["lora", "resize", "file", "--rank", "0", "--out", "o.safetensors"], "--rank"),
    (["lora", "resize", "file", "--energy", "2", "--out", "o.safetensors"], "--energy"),
    (["lora", "fuse", "nothing", "file", "--out", "o.safetensors"], "give a transformer's, or tiny"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "old.safetensors").touch()
    return tmp_path


def code_of(arguments):
    try:
        return command.main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("arguments, message", WRONG, ids=lambda value: None if isinstance(value, str) else value[-1])
def test_a_wrong_command_line_exits_with_2_and_names_what_is_wrong(folder, capsys, arguments, message):
    before = sorted(folder.iterdir())
    assert code_of(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(folder.iterdir()) == before


def test_wrong_command_lines_help_and_version_do_not_wait_for_torch(folder):
    lines = [*(arguments for arguments, _ in WRONG), ["--help"], ["lora", "--help"], ["--version"]]
    code = f"""
import sys
from diffusers_flux_ext.cli.main import main
for arguments in {lines!r}:
    try:
        main(arguments)
    except SystemExit:
        pass
    slow = {{"torch", "diffusers", "transformers", "numpy"}} & set(sys.modules)
    assert not slow, (arguments, slow)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the device that is missing")
def test_a_device_that_is_missing(folder, capsys):
    assert command.main([*A, "--device", "cuda"]) == 2
    assert "--device cuda is not available" in capsys.readouterr().err


def test_a_name_that_torch_does_not_know(folder, capsys):
    assert command.main([*A, "--device", "card"]) == 2
    assert "--device card is not a device" in capsys.readouterr().err


def test_an_interrupt_is_one_line_and_130(folder, monkeypatch, capsys):
    from diffusers_flux_ext import jobs

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "read_job", interrupted)
    # Only what the command itself writes counts, not the import above.
    capsys.readouterr()
    assert command.main(A) == 130
    assert capsys.readouterr().err == "\nflux-ext generate: interrupted\n"


def test_offloading_without_an_accelerator_says_so(folder, capsys):
    assert command.main([*A, "--device", "cpu", "--offload", "model", "--steps", "1", "--size", "32"]) == 0
    error = capsys.readouterr().err
    assert "flux-ext generate: warning: --offload model has no effect without an accelerator" in error


def test_what_is_cut_is_said(folder, capsys):
    arguments = ["--steps", "1", "--size", "40x50", "--out", "a.png"]
    assert command.main(["generate", "--prompt", "a red circle " * 20, *arguments]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "--size 40x50 becomes 32x48" in warnings[0]
    assert "truncated because --text-tokens is set to" in warnings[-1]
    assert max(map(len, warnings)) < 450


def test_messages_name_flags():
    args = argparse.Namespace(rank=1, out="x", strict=True)
    message = (
        "`rank` is 0, `height` and `width` odd; `strict=False`, `true_cfg_scale=3`, `other` and `ram_budget_gib`."
    )
    expected = "--rank is 0, --size odd; --no-strict, --true-cfg 3, `other` and --ram."
    assert in_flags(message, args) == expected


def test_libraries_are_quiet_inside_and_as_before_after(capsys):
    transformers_logger = logging.getLogger("transformers")
    before = transformers_logger.level
    with quiet_libraries(argparse.Namespace(title="flux-ext test", steps=1)):
        assert not transformers_logger.isEnabledFor(logging.WARNING)
        logging.getLogger("diffusers_flux_ext.somewhere").warning("`num_inference_steps` is\nlow")
    assert transformers_logger.level == before
    logging.getLogger("diffusers_flux_ext.somewhere").warning("not for the terminal's handler")
    assert capsys.readouterr().err.startswith("flux-ext test: warning: --steps is low\n")


class TestEnv:
    def test_for_people_and_for_programs(self, capsys):
        assert command.main(["env"]) == 0
        text = capsys.readouterr().out
        assert f"torch               {torch.__version__}" in text
        assert command.main(["env", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert list(facts) == [line.split()[0] for line in text.splitlines()]

    def test_no_paths_and_no_tokens(self, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_HOME", "/home/somebody/models")
        text = json.dumps(describe_environment())
        assert "hf_secret" not in text
        assert "/" not in text

    def test_a_broken_torch_is_reported(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        assert "cannot be imported (ModuleNotFoundError)" in describe_environment()["torch"]


def test_version(capsys):
    assert code_of(["--version"]) == 0
    assert capsys.readouterr().out.startswith("flux-ext ")
