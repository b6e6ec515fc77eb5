"""The autoencoder from single files: diffusers' and Black Forest Labs' names under every prefix."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from benchmarks.support.single_files import vae_of_black_forest_labs
from diffusers_flux_ext import AutoencoderKLFlux
from diffusers_flux_ext.checkpoints.vae import read_vae
from diffusers_flux_ext.testing import tiny_vae


GROUPS = {"norm_num_groups": 4}
IMAGE = torch.linspace(-1, 1, 3 * 16 * 24).reshape(1, 3, 16, 24)


@pytest.fixture(scope="module")
def vae():
    return tiny_vae(0)


def image(model):
    with torch.no_grad():
        return model.decode(model.encode(IMAGE).latent_dist.mode()).sample


def diffusers_names(model, prefix=""):
    return {prefix + key: weight for key, weight in model.state_dict().items()}


@pytest.mark.parametrize("names", [diffusers_names, vae_of_black_forest_labs])
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_every_layout_is_the_same_model(vae, tmp_path, names, prefix):
    weights = names(vae, prefix) | {"text_encoders.t5xxl.transformer.encoder.block.0.x.weight": torch.ones(2)}
    save_file(weights, tmp_path / "ae.safetensors")
    model = read_vae(tmp_path / "ae.safetensors", **GROUPS)
    assert type(model) is AutoencoderKL
    assert torch.equal(image(model), image(vae))
    assert not model.training
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.3611, 0.1159)


def test_old_names_of_attention(vae):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = diffusers_names(vae)
    for new, former in old.items():
        weights = {key.replace(f"attentions.0.{new}.", f"attentions.0.{former}."): w for key, w in weights.items()}
    assert torch.equal(image(read_vae(weights, **GROUPS)), image(vae))


def test_the_class_of_this_package(vae, tmp_path):
    save_file(vae_of_black_forest_labs(vae), tmp_path / "ae.safetensors")
    model = AutoencoderKLFlux.from_single_file(tmp_path / "ae.safetensors", torch_dtype=torch.bfloat16, **GROUPS)
    assert type(model) is AutoencoderKLFlux
    assert model.dtype == torch.bfloat16
    assert read_vae(vae.state_dict(), AutoencoderKLFlux, **GROUPS).config.norm_num_groups == 4


def test_a_folder_needs_nothing(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    assert torch.equal(image(read_vae(weights)), image(vae))
    save_file(vae_of_black_forest_labs(vae), tmp_path / "ae.safetensors")
    model = AutoencoderKLFlux.from_single_file(tmp_path / "ae.safetensors", config=tmp_path, subfolder="vae")
    assert torch.equal(image(model), image(vae))


def test_convolutions_beside_the_latents():
    vae = tiny_vae(2, use_quant_conv=True, use_post_quant_conv=True, mid_block_add_attention=False)
    model = read_vae(vae_of_black_forest_labs(vae), **GROUPS)
    assert torch.equal(image(model), image(vae))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"decoder.norm_out.bias": None}, r"missing.*`decoder.conv_norm_out.bias`"),
        ({"encoder.down.1.block.0.conv9.weight": torch.ones(2)}, r"surplus.*conv9"),
        ({"decoder.conv_in.weight": None}, "no autoencoder among the keys"),
        ({"encoder.down.0.block.0.conv1.weight": None}, r"missing: `encoder.down_blocks.0.resnets.0.conv1.weight`"),
        ({"decoder.conv_out.weight": torch.ones(3)}, "wrong number of dimensions"),
    ],
)
def test_a_broken_file(vae, tmp_path, change, message):
    weights = {**vae_of_black_forest_labs(vae), **change}
    save_file({key: w for key, w in weights.items() if w is not None}, tmp_path / "ae.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        read_vae(tmp_path / "ae.safetensors", **GROUPS)
    assert "ae.safetensors" in str(error.value)


def test_what_leaves_no_trace_is_asked_for(vae):
    with pytest.raises(ValueError, match=r"\(8, 8, 12, 16\) channels.*Pass `norm_num_groups`"):
        read_vae(vae.state_dict())
    with pytest.raises(TypeError, match="groups"):
        read_vae(vae.state_dict(), groups=4)
