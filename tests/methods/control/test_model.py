"""`FluxExtControlNetModel`: every published layout, config inference, errors, compatibility with the base class."""

import pytest
import torch
from diffusers import FluxControlNetModel
from safetensors.torch import save_file

from benchmarks.support.tiny.controlnet import KINDS, tiny_controlnet
from diffusers_flux_ext import FluxExtControlNetModel
from diffusers_flux_ext.checkpoints.layouts import PREFIX
from diffusers_flux_ext.methods.control.checkpoint import convert_controlnet_state_dict
from diffusers_flux_ext.testing import tiny_transformer


LAYOUTS = ("diffusers", "bfl", "diffsynth")
AXES = (4, 6, 6)
# What tells the published checkpoints apart, at their own depths.
PUBLISHED = {
    "InstantX Union-alpha": {"num_layers": 5, "num_single_layers": 10, "num_mode": 10},
    "Shakker Labs Union-Pro": {"num_layers": 5, "num_single_layers": 10, "num_mode": 10},
    "Shakker Labs Union-Pro-2.0": {"num_layers": 6, "num_single_layers": 0},
    "InstantX Canny": {"num_layers": 5, "num_single_layers": 0},
    "alimama Inpainting-Alpha": {"num_layers": 6, "num_single_layers": 0, "extra_condition_channels": 4},
    "jasperai Upscaler": {"num_layers": 5, "num_single_layers": 0, "guidance_embeds": True},
    "InfuseNet": {"num_layers": 4, "num_single_layers": 10},
    "XLabs": {
        "num_layers": 2, "num_single_layers": 0, "patch_size": 2, "conditioning_embedding_channels": 16,
    },
}  # fmt: skip
ARGUMENTS = (
    "patch_size", "in_channels", "num_layers", "num_single_layers", "num_mode", "conditioning_embedding_channels",
    "guidance_embeds", "joint_attention_dim", "pooled_projection_dim", "num_attention_heads", "attention_head_dim",
)  # fmt: skip


def file_in(layout, controlnet, path, prefix=""):
    weights = convert_controlnet_state_dict(controlnet.state_dict(), to=layout)
    save_file({prefix + key: weight.contiguous() for key, weight in weights.items()}, path)
    return path


def residuals(controlnet):
    generator = torch.Generator().manual_seed(1)
    width = controlnet.controlnet_x_embedder.in_features
    shape = (2, 3, 32, 48) if controlnet.input_hint_block is not None else (2, 6, width)
    with torch.no_grad():
        return controlnet(
            hidden_states=torch.randn(2, 6, 64, generator=generator),
            controlnet_cond=torch.randn(shape, generator=generator),
            controlnet_mode=torch.tensor([[2], [4]]) if controlnet.union else None,
            encoder_hidden_states=torch.randn(2, 5, 40, generator=generator),
            pooled_projections=torch.randn(2, 24, generator=generator),
            timestep=torch.tensor([0.3, 0.9]),
            guidance=torch.tensor([3.5, 1.0]) if controlnet.config.guidance_embeds else None,
            img_ids=torch.randint(0, 9, (6, 3), generator=generator).float(),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )


def assert_same(one, other):
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    for left, right in zip(residuals(one), residuals(other)):
        assert (left is None) == (right is None)
        # A file's tensors may be aligned otherwise, for which kernels may round otherwise.
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_structures_are_recognised(tmp_path, config, layout, prefix):
    controlnet = tiny_controlnet(5, **config)
    path = file_in(layout, controlnet, tmp_path / "model.safetensors", prefix)
    loaded = FluxExtControlNetModel.from_single_file(path, axes_dims_rope=AXES)
    assert {name: loaded.config[name] for name in ARGUMENTS} == {name: controlnet.config[name] for name in ARGUMENTS}
    assert loaded.config.extra_condition_channels == config.get("extra_condition_channels", 0)
    assert not loaded.training
    assert_same(loaded, controlnet)


def test_xlabs_names():
    keys = convert_controlnet_state_dict(tiny_controlnet(5, "xlabs").state_dict(), to="bfl").keys()
    assert {f"input_hint_block.{index}.weight" for index in range(0, 16, 2)} <= keys
    assert {"pos_embed_input.weight", "controlnet_blocks.1.bias", "double_blocks.1.img_attn.qkv.weight"} <= keys
    assert not [key for key in keys if key.startswith(("controlnet_x_embedder", "transformer_blocks"))]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_reloaded(tmp_path, kind):
    weights = tiny_controlnet(5, kind).state_dict()
    controlnet = FluxExtControlNetModel.from_state_dict(weights, axes_dims_rope=AXES)
    controlnet.save_pretrained(tmp_path)
    assert_same(FluxExtControlNetModel.from_pretrained(tmp_path), controlnet)
    if kind != "inpaint":
        assert_same(FluxControlNetModel.from_pretrained(tmp_path), controlnet)


def test_a_folder_of_the_base_class_loads(tmp_path):
    controlnet = tiny_controlnet(5, "union")
    controlnet.save_pretrained(tmp_path)
    loaded = FluxExtControlNetModel.from_pretrained(tmp_path)
    assert loaded.config.extra_condition_channels == 0
    assert_same(loaded, controlnet)


def test_a_new_one_says_nothing():
    double, single = residuals(FluxExtControlNetModel.from_config({**tiny_controlnet(5, "inpaint").config}))
    assert single is None
    assert all(float(residual.abs().max()) == 0 for residual in double)


def test_bfloat16_and_source_left_alone():
    weights = tiny_controlnet(5, "inpaint").state_dict()
    before = {key: weight.clone() for key, weight in weights.items()}
    loaded = FluxExtControlNetModel.from_state_dict(weights, axes_dims_rope=AXES, torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    loaded.requires_grad_(False).controlnet_blocks[0].weight.zero_()
    assert all(torch.equal(weight, before[key]) for key, weight in weights.items())


BROKEN = {
    "a transformer": (lambda weights: tiny_transformer(0).state_dict(), "without those of a ControlNet"),
    "no embedder": (
        lambda weights: {key: weight for key, weight in weights.items() if "controlnet_x" not in key},
        "controlnet_x_embedder.weight",
    ),
    "an unknown key": (lambda weights: {**weights, "adapter.weight": torch.zeros(1)}, "adapter.weight"),
    "a missing block": (
        lambda weights: {key: weight for key, weight in weights.items() if "controlnet_single_blocks.1" not in key},
        "controlnet_single_blocks.1",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files(change, message):
    with pytest.raises(ValueError, match=message):
        FluxExtControlNetModel.from_state_dict(change(tiny_controlnet(5).state_dict()), axes_dims_rope=AXES)


def test_unknown_arguments():
    with pytest.raises(TypeError, match=r"Unknown arguments of the model: \['heads'\]"):
        FluxExtControlNetModel.from_state_dict(tiny_controlnet(5).state_dict(), heads=2)
    with pytest.raises(ValueError, match="axes_dims_rope"):
        FluxExtControlNetModel.from_state_dict(tiny_controlnet(5).state_dict())
