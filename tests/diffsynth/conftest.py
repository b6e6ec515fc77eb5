"""A folder of stand-ins for all tests of scripts written for DiffSynth-Studio."""

from pathlib import Path

import pytest

from benchmarks.support.diffsynth.models import write_all


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of downloaded models."""
    root = tmp_path_factory.mktemp("models")
    write_all(root)
    return root


@pytest.fixture
def downloaded(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The environment of a script: models are there, nothing is downloaded, and it writes into a folder of its own."""
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", str(models))
    monkeypatch.setenv("DIFFSYNTH_SKIP_DOWNLOAD", "True")
    monkeypatch.chdir(tmp_path)
    return models
