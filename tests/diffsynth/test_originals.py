"""The published scripts themselves, from a checkout of DiffSynth-Studio that `DIFFSYNTH_SOURCE` names.

    DIFFSYNTH_SOURCE=DiffSynth-Studio python -m pytest tests/diffsynth/test_originals.py

Their text is changed in one line, as a user would; sizes, steps, the device and the data type become those of the
stand-ins behind their backs, and so do pictures that they download.
"""

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.support.diffsynth.models import FILES
from diffusers_flux_ext.diffsynth import FluxImagePipeline, running
from diffusers_flux_ext.diffsynth.model_config import STAGES
from tests.fixtures.diffsynth_scripts import OurFaces, changed


SOURCE = os.environ.get("DIFFSYNTH_SOURCE")
FOLDER = Path(SOURCE or "", "examples", "flux")
SCRIPTS = sorted(
    path for name in ("model_inference", "model_inference_low_vram") for path in FOLDER.glob(f"{name}/*.py")
)
SIDE = 64

pytestmark = pytest.mark.skipif(
    not SCRIPTS, reason="DIFFSYNTH_SOURCE names no checkout of DiffSynth-Studio with examples/flux/model_inference"
)


class _Stop(Exception):
    """A file that has no stand-in."""


@pytest.fixture
def small(downloaded, monkeypatch, tmp_path):
    """The stand-ins behind a script's back."""
    load, call = FluxImagePipeline.from_pretrained, FluxImagePipeline.__call__

    def from_pretrained(**given: Any) -> Any:
        for config in given["model_configs"]:
            key = (config.model_id, config.origin_file_pattern)
            if key not in FILES:
                raise _Stop(f"no stand-in for {key}")
            for stage in STAGES:
                if getattr(config, f"{stage}_device") == "cuda":
                    setattr(config, f"{stage}_device", "cpu")
        return load(**{**given, "device": "cpu", "vram_limit": 8})

    def short(self: Any, *args: Any, **given: Any) -> Any:
        sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "t5_sequence_length": 16}
        return call(self, *args, **{**given, **sizes, "rand_device": "cpu", "progress_bar_cmd": list})

    picture = Image.effect_mandelbrot((SIDE, SIDE), (-2, -1, 1, 1), 20).convert("RGB")
    monkeypatch.setattr(FluxImagePipeline, "from_pretrained", staticmethod(from_pretrained))
    monkeypatch.setattr(FluxImagePipeline, "__call__", short)
    monkeypatch.setattr(FluxImagePipeline, "_face_encoder", lambda self: OurFaces())
    monkeypatch.setattr(running, "DIPTYCH_HEIGHT", SIDE)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: picture.copy())
    # Scripts of Nexus-Gen insist on the reference's version of transformers, which this package does not need.
    monkeypatch.setattr("transformers.__version__", "4.49.0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (2**33, 2**33))
    for name in ("snapshot_download", "dataset_snapshot_download"):
        monkeypatch.setattr(f"modelscope.{name}", lambda *args, **kwargs: str(tmp_path), raising=False)
    processors = types.ModuleType("controlnet_aux.processor")
    processors.__getattr__ = lambda name: _Detector  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "controlnet_aux", types.ModuleType("controlnet_aux"))
    monkeypatch.setitem(sys.modules, "controlnet_aux.processor", processors)
    return downloaded


class _Detector:
    """Gives the image back."""

    @classmethod
    def from_pretrained(cls, path: str) -> "_Detector":
        return cls()

    def to(self, device: str) -> "_Detector":
        return self

    def __call__(self, image: Image.Image, **options: int) -> Image.Image:
        return image


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_original_runs_after_one_changed_line(script, small, tmp_path):
    text = script.read_text()
    text = changed(text)
    try:
        exec(compile(text, str(script), "exec"), {"__name__": "__main__"})
    except _Stop as missing:
        pytest.skip(str(missing))
    assert [file for file in tmp_path.rglob("*") if file.suffix in (".jpg", ".png", ".jpeg")]
