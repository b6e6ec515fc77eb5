"""The published scripts themselves, from a checkout of DiffSynth-Studio that `DIFFSYNTH_SOURCE` names.

    DIFFSYNTH_SOURCE=DiffSynth-Studio python -m pytest tests/diffsynth/test_originals.py

Their text is changed in one line, as a user would; sizes, steps, the device and the data type become those of the
stand-ins behind their backs, and so do pictures that they download.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusers_flux_ext.diffsynth import FluxImagePipeline, running
from tests.fixtures.diffsynth_models import FILES
from tests.fixtures.diffsynth_scripts import OurFaces, changed


SOURCE = os.environ.get("DIFFSYNTH_SOURCE")
FOLDER = Path(SOURCE or "", "examples", "flux", "model_inference")
SCRIPTS = sorted(FOLDER.glob("*.py")) if SOURCE else []
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
            for stage in ("offload", "onload", "preparing", "computation"):
                setattr(config, f"{stage}_device", None)
                setattr(config, f"{stage}_dtype", None)
        return load(**{**given, "torch_dtype": torch.float32, "device": "cpu", "vram_limit": None})

    def short(self: Any, *args: Any, **given: Any) -> Any:
        sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "t5_sequence_length": 16}
        return call(self, *args, **{**given, **sizes, "rand_device": "cpu", "progress_bar_cmd": list})

    picture = Image.effect_mandelbrot((SIDE, SIDE), (-2, -1, 1, 1), 20).convert("RGB")
    monkeypatch.setattr(FluxImagePipeline, "from_pretrained", staticmethod(from_pretrained))
    monkeypatch.setattr(FluxImagePipeline, "__call__", short)
    monkeypatch.setattr(FluxImagePipeline, "_face_encoder", lambda self: OurFaces())
    monkeypatch.setattr(running, "DIPTYCH_HEIGHT", SIDE)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: picture.copy())
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *args, **kwargs: picture.copy())
    for name in ("snapshot_download", "dataset_snapshot_download"):
        monkeypatch.setattr(f"modelscope.{name}", lambda *args, **kwargs: str(tmp_path), raising=False)
    return downloaded


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_original_runs_after_one_changed_line(script, small, tmp_path):
    text = script.read_text()
    # The annotator's import is the other line that names the package.
    text = re.sub(
        r"^from diffsynth\.utils\.controlnet import ", "from diffusers_flux_ext.diffsynth import ", changed(text)
    )
    try:
        exec(compile(text, str(script), "exec"), {"__name__": "__main__"})
    except _Stop as missing:
        pytest.skip(str(missing))
    except ImportError as error:
        pytest.skip(f"the script needs a package that is not installed: {error}")
    assert [file for file in tmp_path.rglob("*") if file.suffix in (".jpg", ".png", ".jpeg")]
