"""The example of a script for DiffSynth-Studio draws with the embedded model, and with downloaded files."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.support.diffsynth.models import lora, write_base
from diffusers_flux_ext.diffsynth import running


SCRIPT = Path(__file__).parents[2] / "examples" / "diffsynth_script.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DIFFSYNTH_SKIP_DOWNLOAD", "true")

    def main(*words):
        out = tmp_path / "out.png"
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--steps", "1", "--out", str(out), *map(str, words)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return np.asarray(Image.open(out)).astype(int)

    return main


def test_the_embedded_model(run):
    plain = run()
    assert plain.shape == (128, 128, 3)
    assert plain.std() > 1
    assert (run("--vram", "2") == plain).all()
    assert (run("--seed", "1") != plain).any()


@pytest.mark.slow
def test_downloaded_files_and_a_lora(run, tmp_path, monkeypatch):
    write_base(tmp_path / "models")
    save_file(lora(), tmp_path / "lora.safetensors")
    monkeypatch.setattr(running, "round_up", lambda name, size: 64)
    plain = run("--models", tmp_path / "models")
    assert plain.shape == (64, 64, 3)
    assert (run("--models", tmp_path / "models", "--lora", tmp_path / "lora.safetensors") != plain).any()
