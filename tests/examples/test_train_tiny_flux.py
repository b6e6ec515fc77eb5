"""The training example runs through every stage, resumes and skips."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file


pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / "train_tiny_flux.py"), "--out", str(out), "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu", *options], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


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


def test_finished_stages_are_skipped_and_a_lost_result_comes_from_the_checkpoint(trained: tuple[Path, str]) -> None:
    out, _ = trained
    lora = out / "tiny_flux_eligen_lora.safetensors"
    before = load_file(lora)
    lora.unlink()
    output = run(out, "--stages", "tokenizers", "vae", "text", "latents", "flow", "eligen")
    assert output.count("done before, skipped") == 5
    after = load_file(lora)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
