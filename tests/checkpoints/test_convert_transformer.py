"""The transformer's conversion script on tiny files."""

import importlib.util
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from diffusers_flux_ext.testing import tiny_transformer


PATH = Path(__file__).parents[2] / "conversion_scripts" / "convert_transformer.py"
AXES = ["--axes-dims-rope", "4", "6", "6"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_transformer", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path):
    weights = tiny_transformer(0).state_dict()
    save_file(weights, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors", weights


def run(script, *arguments):
    return script.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("layout", ["bfl", "diffsynth"])
def test_there_and_back_through_files_and_a_folder(script, source, tmp_path, layout):
    path, weights = source
    assert run(script, path, tmp_path / "other.safetensors", "--to", layout) == 0
    assert set(load_file(tmp_path / "other.safetensors")) != set(weights)
    assert run(script, tmp_path / "other.safetensors", tmp_path / "back.safetensors") == 0
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert run(script, tmp_path / "other.safetensors", tmp_path / "folder", *AXES) == 0
    folder = FluxTransformer2DModel.from_pretrained(tmp_path / "folder").state_dict()
    assert all(torch.equal(folder[key], weights[key]) for key in weights)


def test_wrong_inputs_write_nothing(script, source, tmp_path, capsys):
    path, weights = source
    save_file({**weights, "unknown.weight": torch.zeros(2)}, tmp_path / "odd.safetensors")
    before = sorted(tmp_path.iterdir())
    assert run(script, tmp_path / "odd.safetensors", tmp_path / "out.safetensors", "--to", "bfl") == 1
    assert "unknown.weight" in capsys.readouterr().err
    assert run(script, tmp_path / "absent.safetensors", tmp_path / "out.safetensors") == 1
    assert run(script, path, tmp_path / "folder") == 1
    assert "axes_dims_rope" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(SystemExit):
        run(script, path, tmp_path / "folder", "--to", "bfl")
