"""The training example runs through every stage, resumes and skips."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.support.processes import end_of, start_process


pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


SCRIPT = ROOT / "examples" / "train_tiny_flux.py"


def train(*arguments: str) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def run(out: Path) -> str:
    printed = out / "printed.txt"
    process = start_process(train, "--out", str(out), "--quick", "--device", "cpu", output=printed)
    assert end_of(process, 900) == 0, printed.read_text()[-3000:]
    return printed.read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("tiny")
    return out, run(out)


def test_every_stage_leaves_its_result(trained: tuple[Path, str]) -> None:
    out, output = trained
    expected = ["tokenizers", "vae", "text_encoders", "latents", "tiny_flux", "tiny_flux_eligen_lora.safetensors"]
    assert all((out / name).exists() for name in [*expected, "scores.json"])
    assert not list(out.rglob("*.tmp"))
    assert "entities, LoRA" in output
    assert [row["entities"] for row in json.loads((out / "scores.json").read_text())[1:]] == [5.0] * 3


def test_the_result_is_an_ordinary_pipeline_with_an_ordinary_lora(trained: tuple[Path, str]) -> None:
    out, _ = trained
    pipeline = FluxPipeline.from_pretrained(out / "tiny_flux", torch_dtype=torch.float32)
    pipeline.load_lora_weights(out, weight_name="tiny_flux_eligen_lora.safetensors")
    assert pipeline.get_active_adapters() == ["default_0"]
    with safe_open(out / "tiny_flux_eligen_lora.safetensors", framework="pt") as file:
        names, metadata = list(file.keys()), file.metadata()
    assert len(names) == 88
    assert all(name.startswith("transformer.") for name in names)
    assert json.loads(metadata["lora_adapter_metadata"])["transformer.r"] == 32


def test_finished_stages_are_skipped_and_a_lost_result_comes_from_the_checkpoint(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out, _ = trained
    lora = out / "tiny_flux_eligen_lora.safetensors"
    before = load_file(lora)
    lora.unlink()
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    stages = ["--stages", "tokenizers", "vae", "text", "latents", "flow", "eligen"]
    with caplog.at_level(logging.INFO):
        runpy.run_path(str(SCRIPT))["main"](["--out", str(out), "--quick", "--device", "cpu", *stages])
    assert caplog.text.count("done before, skipped") == 5
    after = load_file(lora)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
