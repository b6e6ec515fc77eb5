"""FLUX.1's VAE from single files in every layout."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.diffsynth.models import bfl_vae, vae
from diffusers_flux_ext import AutoencoderKLFlux
from diffusers_flux_ext.checkpoints.vae_layouts import HALF_TABLES, plan_vae_half
from diffusers_flux_ext.testing import tiny_vae


def former_names():
    """diffusers' names of the attention before version 0.17."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for key, tensor in vae().state_dict().items():
        for ours, former in names.items():
            key = key.replace(f"attentions.0.{ours}.", f"attentions.0.{former}.")
        weights[key] = tensor
    return weights


LAYOUTS = {
    "Black Forest Labs": bfl_vae,
    "ComfyUI": lambda: {f"vae.{key}": tensor for key, tensor in bfl_vae().items()},
    "all in one": lambda: {f"first_stage_model.{key}": tensor for key, tensor in bfl_vae().items()},
    "diffusers": lambda: dict(vae().state_dict()),
    "diffusers, formerly": former_names,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file(layout, tmp_path):
    file = tmp_path / "ae.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in LAYOUTS[layout]().items()}, file)
    model = AutoencoderKLFlux.from_single_file(file)
    assert not model.training
    assert model.config.block_out_channels == (32, 32, 64, 64)
    for key, weight in vae().state_dict().items():
        assert torch.equal(model.state_dict()[key], weight), key


def test_other_groups_and_types():
    small = tiny_vae(3)
    model = AutoencoderKLFlux.from_single_file(small.state_dict(), norm_num_groups=4, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config.norm_num_groups == 4
    assert model.config.latent_channels == 16


def test_a_config_replaces_what_is_inferred(tmp_path):
    vae().save_config(tmp_path / "vae")
    model = AutoencoderKLFlux.from_single_file(bfl_vae(), config=tmp_path, subfolder="vae")
    assert tuple(model.config.block_out_channels) == (32, 32, 64, 64)
    with pytest.raises(ValueError, match="norm_num_groups|num_channels"):
        AutoencoderKLFlux.from_single_file(bfl_vae(), norm_num_groups=7)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_half(half):
    own = {key: tensor for key, tensor in vae().state_dict().items() if key.startswith(half)}
    theirs = {file: own[ours] for file, (ours,) in HALF_TABLES[half].keys.items() if ours in own}
    assert len(theirs) == len(own)
    for given in (theirs, bfl_vae(), dict(vae().state_dict())):
        plan = plan_vae_half({key: tuple(tensor.shape) for key, tensor in given.items()}, half)
        assert plan.keys() == own.keys()
        for key, recipe in plan.items():
            assert torch.equal(recipe.build(given.__getitem__).reshape(own[key].shape), own[key])


def test_another_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a file of the VAE of FLUX\.1 in any known layout.*`x`"):
        AutoencoderKLFlux.from_single_file({"x": torch.ones(2)})
    with pytest.raises(ValueError, match="does not have.*`extra`"):
        AutoencoderKLFlux.from_single_file({**bfl_vae(), "extra": torch.ones(2)})
    cut = bfl_vae()
    cut.pop("decoder.norm_out.bias")
    save_file({key: tensor.contiguous().clone() for key, tensor in cut.items()}, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"cut\.safetensors.*`decoder\.conv_norm_out\.bias`"):
        AutoencoderKLFlux.from_single_file(tmp_path / "cut.safetensors")
    cut.pop("encoder.down.0.block.0.conv1.weight")
    with pytest.raises(ValueError, match="not complete"):
        AutoencoderKLFlux.from_single_file(cut)
