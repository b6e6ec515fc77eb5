"""The ControlNet's conversion script on tiny files."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.support.tiny.controlnet import KINDS, tiny_controlnet
from conversion_scripts import convert_controlnet as script
from diffusers_flux_ext import FluxExtControlNetModel
from diffusers_flux_ext.methods.control.checkpoint import convert_controlnet_state_dict
from diffusers_flux_ext.testing import tiny_transformer


AXES = ["--axes-dims-rope", "4", "6", "6"]


def run(*arguments):
    return script.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["diffusers", "bfl", "diffsynth"])
def test_a_file_becomes_a_folder_that_loads(tmp_path, kind, layout):
    controlnet = tiny_controlnet(5, kind)
    weights = convert_controlnet_state_dict(controlnet.state_dict(), to=layout)
    save_file({key: weight.contiguous() for key, weight in weights.items()}, tmp_path / "source.safetensors")
    assert run(tmp_path / "source.safetensors", tmp_path / "folder", *AXES) == 0
    loaded = FluxExtControlNetModel.from_pretrained(tmp_path / "folder")
    assert all(torch.equal(weight, controlnet.state_dict()[key]) for key, weight in loaded.state_dict().items())
    assert run(tmp_path / "source.safetensors", tmp_path / "back.safetensors") == 0
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == controlnet.state_dict().keys()


def test_wrong_inputs_write_nothing(tmp_path, capsys):
    save_file(tiny_transformer(0).state_dict(), tmp_path / "transformer.safetensors")
    before = sorted(tmp_path.iterdir())
    assert run(tmp_path / "transformer.safetensors", tmp_path / "folder") == 1
    assert "without those of a ControlNet" in capsys.readouterr().err
    assert run(tmp_path / "absent.safetensors", tmp_path / "folder") == 1
    assert sorted(tmp_path.iterdir()) == before
