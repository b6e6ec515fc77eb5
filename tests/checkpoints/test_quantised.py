"""Single files of quantised weights: GGUF in every layout, and quantising while loading, as the stock class does."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig, QuantoConfig
from diffusers.loaders import FromOriginalModelMixin
from safetensors.torch import save_file

from benchmarks.support.single_files import write_gguf
from benchmarks.support.tiny.controlnet import tiny_controlnet
from diffusers_flux_ext import FluxExtControlNetModel, FluxExtTransformer2DModel
from diffusers_flux_ext.attention.processor import FluxRegionalAttnProcessor
from diffusers_flux_ext.checkpoints.layouts import PREFIX, convert_transformer_state_dict
from diffusers_flux_ext.testing import seeded, tiny_transformer


gguf = pytest.importorskip("gguf")

# Blocks of the quantisation are 32 numbers of a row.
SIZES: dict[str, Any] = {"joint_attention_dim": 64, "pooled_projection_dim": 32}
AXES = (4, 6, 6)
CONFIG = GGUFQuantizationConfig(compute_dtype=torch.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_transformer(0, **SIZES)


def velocity(model):
    generator, config = seeded(1), model.config
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 6, config.in_channels, generator=generator),
            encoder_hidden_states=torch.randn(1, 5, config.joint_attention_dim, generator=generator),
            pooled_projections=torch.randn(1, config.pooled_projection_dim, generator=generator),
            timestep=torch.tensor([0.7]),
            img_ids=torch.randint(0, 9, (6, 3), generator=generator).float(),
            txt_ids=torch.zeros(5, 3),
            guidance=torch.tensor([3.5]),
        ).sample


def load(path, **arguments):
    return FluxExtTransformer2DModel.from_single_file(path, axes_dims_rope=AXES, **arguments)


@pytest.fixture(scope="module")
def stock(model, tmp_path_factory):
    """What the stock class makes of a GGUF file in diffusers' layout, the one that it reads at every width."""
    folder = tmp_path_factory.mktemp("stock")
    model.save_config(folder)
    path = write_gguf(folder / "x.gguf", model.state_dict())
    return FluxTransformer2DModel.from_single_file(str(path), config=str(folder), quantization_config=CONFIG)


@pytest.mark.parametrize("layout, prefix", [("diffusers", ""), ("bfl", ""), ("bfl", PREFIX), ("diffsynth", "")])
def test_gguf_is_what_the_stock_class_makes_of_it(model, stock, tmp_path, layout, prefix):
    weights = convert_transformer_state_dict(model.state_dict(), to=layout)
    path = write_gguf(tmp_path / "x.gguf", {prefix + key: value for key, value in weights.items()})
    ours = load(path, quantization_config=CONFIG)
    assert isinstance(ours, FluxExtTransformer2DModel)
    assert not ours.training
    assert type(ours.single_transformer_blocks[0].proj_out).__name__ == "GGUFLinear"
    assert isinstance(ours.transformer_blocks[0].attn.processor, FluxRegionalAttnProcessor)
    assert torch.equal(velocity(ours), velocity(stock))
    assert 0 < (velocity(ours) - velocity(model)).abs().max() < 0.1 * velocity(model).abs().max()


def test_a_dtype(model, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", model.state_dict())
    config = GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    ours = load(path, quantization_config=config, torch_dtype=torch.bfloat16)
    assert ours.proj_out.bias.dtype == torch.bfloat16
    assert ours.proj_out.weight.dtype == torch.uint8


def test_gguf_needs_a_config(model, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", model.state_dict())
    with pytest.raises(ValueError, match=r"x.gguf` is a GGUF file.*quantization_config=GGUFQuantizationConfig"):
        load(path)


def test_something_else_as_a_config(model, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", model.state_dict())
    with pytest.raises(TypeError, match="`quantization_config` is 'q8'; expected a config of diffusers"):
        load(path, quantization_config="q8")


def test_a_broken_gguf_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ValueError, match="x.gguf` is not an intact GGUF file"):
        load(path, quantization_config=CONFIG)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_safetensors_file_reaches_the_loader_of_diffusers(model, tmp_path, monkeypatch, in_memory):
    weights = convert_transformer_state_dict(model.state_dict(), to="bfl")
    save_file(weights, tmp_path / "x.safetensors")
    calls = []

    def loader(cls, source, config, **arguments):
        calls.append((cls, source, cls.load_config(config), arguments))

    monkeypatch.setattr(FromOriginalModelMixin, "from_single_file", classmethod(loader))
    wanted = QuantoConfig(weights_dtype="int8")
    load(weights if in_memory else tmp_path / "x.safetensors", quantization_config=wanted, device="cpu")
    (cls, source, config, arguments) = calls[0]
    assert cls is FluxExtTransformer2DModel
    assert source.keys() == model.state_dict().keys()
    assert all(torch.equal(source[key], value) for key, value in model.state_dict().items())
    assert {name: config[name] for name in SIZES} == SIZES
    assert arguments == {"quantization_config": wanted, "dtype": None, "device": "cpu"}


def test_a_controlnet_is_not_quantised_while_loading(tmp_path):
    save_file(tiny_controlnet(5).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="FluxExtControlNetModel.*quantise it by `from_pretrained`"):
        FluxExtControlNetModel.from_single_file(tmp_path / "x.safetensors", quantization_config=CONFIG)
