"""Folders of pipelines are checked before `flux-ext generate` loads them."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from diffusers_flux_ext import tiny_flux_path
from diffusers_flux_ext.checkpoints.model_configs import building, check_numbers
from diffusers_flux_ext.checkpoints.pipeline_folders import check_pipeline_folder, check_types
from diffusers_flux_ext.cli.main import main as command


@pytest.fixture
def folder(tmp_path):
    """The tiny pipeline; large files are links."""
    shutil.copytree(tiny_flux_path(), tmp_path / "model", copy_function=_place)
    return tmp_path / "model"


def _place(source, target):
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copy(source, target)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_folder_passes(folder):
    check_pipeline_folder(folder)


BROKEN = {
    "model_index.json": {"transformer": ["diffusers"]},
    "transformer/config.json": {"num_layers": 10**9},
    "transformer/config.json ": {"num_attention_heads": 10**6},
    "vae/config.json": {"layers_per_block": "two"},
    "vae/config.json ": {"latent_channels": 32},
    "text_encoder_2/config.json": {"d_model": 2**30},
    "text_encoder/config.json": {"hidden_size": []},
    "scheduler/scheduler_config.json": {"num_train_timesteps": 10**9},
    "scheduler/scheduler_config.json ": {"shift": "x"},
}


@pytest.mark.parametrize("file", BROKEN)
def test_broken_configs_are_named_before_anything_is_loaded(folder, file, capsys, monkeypatch):
    edit(folder / file.strip(), **BROKEN[file])
    monkeypatch.setattr(
        "diffusers_flux_ext.methods.eligen.pipeline.FluxEliGenPipeline.from_pretrained",
        lambda *_, **__: pytest.fail("the pipeline was loaded"),
    )
    call = ["generate", "--model", str(folder), "--prompt", "x", "--out", str(folder.parent / "x.png")]
    assert command(call) == 1
    assert str(folder / file.strip()) in capsys.readouterr().err


def test_weights_that_lack_some_are_named(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("decoder.conv_in.bias")
    path.unlink()
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"{path.name} beside .*lacks .*`decoder.conv_in.bias`"):
        check_pipeline_folder(folder)
    edit(folder / "vae" / "config.json", quantization_config={"quant_method": "torchao"})
    check_pipeline_folder(folder)


def test_types_follow_the_constructor():
    check_types(AutoencoderKL, AutoencoderKL().config)
    check_types(FlowMatchEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler().config)
    for name, value in {"in_channels": True, "block_out_channels": 3, "act_fn": 1, "down_block_types": [1]}.items():
        with pytest.raises(ValueError, match=f"`{name}` is"):
            check_types(AutoencoderKL, {name: value})
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("axes", [[1e9, 12, 12], [4, 6, 2**30], [0, 8, 8], [-4, 10, 10]])
def test_rotary_axes_fill_the_heads(axes):
    with pytest.raises(ValueError, match=r"`axes_dims_rope` .* sum 16"):
        check_numbers({"axes_dims_rope": axes, "attention_head_dim": 16})
    check_numbers({"axes_dims_rope": [4, 6, 6], "attention_head_dim": 16})


def test_errors_of_libraries_name_the_folder():
    with pytest.raises(ValueError, match="`model` does not describe.*math domain"), building("model", (ValueError,)):
        math.log(-1)
