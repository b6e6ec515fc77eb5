"""`flux-ext lora` and the scripts that are shells over it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.support.lora_files import make
from diffusers_flux_ext import convert_lora, detect_lora_format, tiny_flux_path
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.testing import tiny_transformer
from tests.lora.lora_evaluation import assert_bit_equal


SCRIPTS = Path(__file__).parents[2] / "conversion_scripts"


def lora(*arguments):
    return main(["lora", *map(str, arguments)])


@pytest.fixture
def kohya(tmp_path):
    path = tmp_path / "kohya.safetensors"
    save_file({key: value.contiguous() for key, value in make("kohya").state_dict.items()}, path)
    return path


def test_inspect_for_people_and_for_programs(kohya, capsys):
    assert lora("inspect", kohya) == 0
    text = capsys.readouterr().out
    assert "format         kohya" in text
    assert "#" * 40 in text
    assert lora("inspect", kohya, "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "kohya"


def test_convert(kohya, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert lora("convert", kohya, out, "--to", "bfl", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["size"] == out.stat().st_size
    assert_bit_equal(load_file(out), convert_lora(kohya, "bfl")[0])
    assert lora("convert", kohya, out) == 2
    assert "exists" in capsys.readouterr().err
    assert lora("convert", kohya, out, "--overwrite", "--dtype", "float16") == 0
    assert str(next(value.dtype for key, value in load_file(out).items() if "lora" in key)) == "torch.float16"


def test_merge_and_resize_report_the_error(kohya, tmp_path, capsys):
    both, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    assert lora("merge", kohya, kohya, "--weights", 0.5, 0.25, "--out", both) == 0
    assert "error" not in capsys.readouterr().out
    assert lora("resize", both, "--rank", 1, "--out", small) == 0
    assert " % of all layers together, at most " in capsys.readouterr().out
    assert lora("resize", both, "--out", tmp_path / "none.safetensors") == 2
    assert not (tmp_path / "none.safetensors").exists()


def test_fuse_and_extract(kohya, tmp_path, capsys):
    base, tuned, out = (tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "out"))
    save_file(tiny_transformer(0).state_dict(), base)
    assert lora("fuse", base, kohya, "--out", tuned) == 0
    assert lora("extract", "--base", base, "--tuned", tuned, "--rank", 8, "--out", out, "--to", "kohya") == 0
    assert detect_lora_format(out) == "kohya"
    assert lora("extract", "--base", base, "--tuned", base, "--rank", 8, "--out", tmp_path / "x.safetensors") == 2
    assert "do not differ" in capsys.readouterr().err


def test_the_embedded_model_is_a_checkpoint(tmp_path, capsys):
    lora_file = Path(tiny_flux_path()).parent / "tiny_flux_eligen_lora.safetensors"
    out = tmp_path / "out.safetensors"
    assert lora("fuse", "tiny", lora_file, "--out", out) == 0
    before = load_file(Path(tiny_flux_path()) / "transformer" / "diffusion_pytorch_model.safetensors")
    assert load_file(out).keys() == before.keys()
    assert lora("extract", "--base", "tiny", "--tuned", out, "--rank", 32, "--out", tmp_path / "lora.safetensors") == 0


@pytest.mark.parametrize("arguments", [["inspect"], ["convert", "a", "b", "--to", "sdxl"], ["merge", "a"]])
def test_wrong_command_lines(arguments):
    with pytest.raises(SystemExit) as stop:
        lora(*arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "script, arguments, format",
    [
        ("convert_flux_lora", ["--to", "kohya"], "kohya"),
        ("convert_diffsynth_lora_to_diffusers", [], "diffusers_peft_alpha"),
        ("convert_diffusers_lora_to_diffsynth", [], "diffsynth_nodefault"),
    ],
)
def test_scripts_convert(kohya, tmp_path, monkeypatch, script, arguments, format):
    out = tmp_path / "out.safetensors"
    monkeypatch.setattr(sys, "argv", [script, str(kohya), str(out), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    assert stop.value.code == 0
    assert detect_lora_format(out) == format
