"""`FluxExtTransformer2DModel`: reading every layout, config inference, errors, compatibility with the base class."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from diffusers_flux_ext.attention.processor import FluxRegionalAttnProcessor
from diffusers_flux_ext.checkpoints.layouts import (
    LAYOUTS,
    PREFIX,
    convert_transformer_state_dict,
    spell_in_layout,
)
from diffusers_flux_ext.models.transformer_flux_ext import FluxExtTransformer2DModel


AXES = (2, 2, 4)
TINY: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "guidance_embeds": True,
    "axes_dims_rope": AXES,
}
MISSING = ["x_embedder.weight", "norm_out.linear.bias", "single_transformer_blocks.1.attn.norm_k.weight"]


def tiny_stock(**overrides: Any) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(**{**TINY, **overrides}).eval().requires_grad_(False)


def tiny_weights(layout: str = "diffusers", **overrides: Any) -> dict[str, torch.Tensor]:
    weights = convert_transformer_state_dict(tiny_stock(**overrides).state_dict(), to=layout)
    return {key: weight.clone() for key, weight in weights.items()}


def parameters(model: FluxTransformer2DModel) -> dict[str, Any]:
    names = inspect.signature(FluxTransformer2DModel.__init__).parameters
    values = {name: model.config[name] for name in names if name in model.config}
    return {**values, "axes_dims_rope": tuple(values["axes_dims_rope"])}


def velocity(model: FluxTransformer2DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    config, text, image = model.config, 5, 6
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(2, image, config.in_channels, generator=generator),
            encoder_hidden_states=torch.randn(2, text, config.joint_attention_dim, generator=generator),
            pooled_projections=torch.randn(2, config.pooled_projection_dim, generator=generator),
            timestep=torch.tensor([0.3, 0.9]),
            guidance=torch.tensor([3.5, 1.0]) if config.guidance_embeds else None,
            img_ids=torch.randint(0, 9, (image, 3), generator=generator).float(),
            txt_ids=torch.zeros(text, 3),
        ).sample


def assert_same_model(ours: FluxExtTransformer2DModel, stock: FluxTransformer2DModel) -> None:
    assert type(ours) is FluxExtTransformer2DModel
    assert not ours.training
    assert parameters(ours) == parameters(stock)
    weights = stock.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    for key, weight in ours.state_dict().items():
        assert weight.dtype == weights[key].dtype
        assert torch.equal(weight, weights[key]), key
    assert torch.equal(velocity(ours), velocity(stock))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "overrides",
    [{}, {"guidance_embeds": False}, {"in_channels": 384, "out_channels": 64}],
    ids=["dev", "schnell", "fill"],
)
def test_state_dicts_of_every_layout(layout: str, overrides: dict[str, Any]) -> None:
    ours = FluxExtTransformer2DModel.from_state_dict(tiny_weights(layout, **overrides), axes_dims_rope=AXES)
    assert_same_model(ours, tiny_stock(**overrides))


@pytest.mark.parametrize("name", ["model.safetensors", "model.sft"])
@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_every_layout(tmp_path: Path, layout: str, prefix: str, name: str) -> None:
    weights = {prefix + key: weight for key, weight in tiny_weights(layout).items()}
    save_file(weights, tmp_path / name)
    ours = FluxExtTransformer2DModel.from_single_file(str(tmp_path / name), axes_dims_rope=AXES)
    assert_same_model(ours, tiny_stock())


def test_a_mapping_may_stand_for_the_file() -> None:
    ours = FluxExtTransformer2DModel.from_single_file(tiny_weights("bfl"), axes_dims_rope=AXES)
    assert_same_model(ours, tiny_stock())


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_and_device_of_the_load(tmp_path: Path, name: str) -> None:
    save_file(tiny_weights("bfl"), tmp_path / "model.sft")
    ours = FluxExtTransformer2DModel.from_single_file(
        tmp_path / "model.sft", axes_dims_rope=AXES, device="cpu", **{name: torch.bfloat16}
    )
    assert ours.dtype == torch.bfloat16
    assert ours.device == torch.device("cpu")
    expected = tiny_stock().to(torch.bfloat16).state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in ours.state_dict().items())


def test_only_the_header_is_read_before_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({**tiny_weights("bfl"), "double_blocks.0.img_attn.qkv.lora_A": torch.zeros(1)}, tmp_path / "model.sft")
    real_open = safe_open

    class HeaderOnly:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.keys = real_open(*arguments, **options).keys
            self.get_slice = real_open(*arguments, **options).get_slice

        def __enter__(self) -> "HeaderOnly":
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def get_tensor(self, key: str) -> torch.Tensor:
            raise AssertionError(f"`{key}` was read")

    monkeypatch.setattr("diffusers_flux_ext.checkpoints.reading.safe_open", HeaderOnly)
    with pytest.raises(ValueError, match=r"'bfl' layout: `double_blocks\.0\.img_attn\.qkv\.lora_A`"):
        FluxExtTransformer2DModel.from_single_file(tmp_path / "model.sft", axes_dims_rope=AXES)
    save_file(tiny_weights("bfl"), tmp_path / "model.sft")
    with pytest.raises(AssertionError, match="was read"):
        FluxExtTransformer2DModel.from_single_file(tmp_path / "model.sft", axes_dims_rope=AXES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_dict_stays_the_callers(layout: str) -> None:
    weights = tiny_weights(layout)
    copies = {key: weight.clone() for key, weight in weights.items()}
    ours = FluxExtTransformer2DModel.from_state_dict(weights, axes_dims_rope=AXES)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(7.0)
    assert weights.keys() == copies.keys()
    assert all(torch.equal(weight, copies[key]) for key, weight in weights.items())


def test_loaded_model_can_be_trained_and_saved(tmp_path: Path) -> None:
    ours = FluxExtTransformer2DModel.from_state_dict(tiny_weights("bfl"), axes_dims_rope=AXES)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in ours.parameters())
    ours.save_pretrained(tmp_path)
    assert_same_model(FluxExtTransformer2DModel.from_pretrained(tmp_path), tiny_stock())


@given(
    st.integers(0, 4),
    st.integers(0, 12),
    st.integers(1, 4),
    st.sampled_from([(2, 2, 4), (4, 6, 6), (2, 10, 10)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 130),
    st.booleans(),
    st.sampled_from(LAYOUTS),
)
@settings(max_examples=20, deadline=None)
def test_config_is_inferred_at_any_width_and_depth(
    double: int,
    single: int,
    heads: int,
    axes: tuple[int, int, int],
    text: int,
    pooled: int,
    channels: int,
    guidance: bool,
    layout: str,
) -> None:
    stock = tiny_stock(
        num_layers=double,
        num_single_layers=max(single, 1 - double),
        num_attention_heads=heads,
        attention_head_dim=sum(axes),
        axes_dims_rope=axes,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        in_channels=channels,
        guidance_embeds=guidance,
    )
    weights = convert_transformer_state_dict(stock.state_dict(), to=layout)
    assert parameters(FluxExtTransformer2DModel.from_state_dict(weights, axes_dims_rope=axes)) == parameters(stock)


def test_heads_of_the_released_width_need_no_override() -> None:
    sizes = {"attention_head_dim": 128, "num_attention_heads": 1, "axes_dims_rope": (16, 56, 56)}
    stock = tiny_stock(num_layers=1, num_single_layers=1, **sizes)
    assert_same_model(FluxExtTransformer2DModel.from_state_dict(stock.state_dict()), stock)


def test_other_heads_need_the_override() -> None:
    with pytest.raises(ValueError, match=r"heads are 8 wide.*Pass `axes_dims_rope=\(a, b, c\)`"):
        FluxExtTransformer2DModel.from_state_dict(tiny_weights())


@pytest.mark.parametrize("axes", [(2, 2, 2), (3, 3, 2), (4, 4)])
def test_impossible_axes_raise(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three even numbers of sum 8"):
        FluxExtTransformer2DModel.from_state_dict(tiny_weights(), axes_dims_rope=axes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", MISSING)
def test_missing_keys_are_named_as_the_file_spells_them(layout: str, key: str) -> None:
    weights = tiny_weights(layout)
    spelled = spell_in_layout(key, layout)
    del weights[spelled]
    with pytest.raises(ValueError, match=f"'{layout}' layout are missing: `{spelled}`"):
        FluxExtTransformer2DModel.from_state_dict(weights, axes_dims_rope=AXES)


def test_a_missing_block_is_named_up_to_ten_keys() -> None:
    weights = {key: weight for key, weight in tiny_weights("bfl").items() if not key.startswith("double_blocks.0.")}
    weights |= {"double_blocks.0.img_attn.norm.query_norm.scale": torch.zeros(8)}
    with pytest.raises(ValueError, match=r"'bfl' layout are missing: `double_blocks\.0\.img_attn.* and 13 more"):
        FluxExtTransformer2DModel.from_state_dict(weights, axes_dims_rope=AXES)


def test_wrong_shapes_are_named_with_both_shapes() -> None:
    weights = tiny_weights("bfl")
    weights["double_blocks.1.txt_mlp.2.weight"] = torch.zeros(16, 60)
    with pytest.raises(
        ValueError, match=r"`double_blocks\.1\.txt_mlp\.2\.weight` gives \(16, 60\).*of shape \(16, 64\)"
    ):
        FluxExtTransformer2DModel.from_state_dict(weights, axes_dims_rope=AXES)


def test_wrong_dimensions_are_named() -> None:
    with pytest.raises(ValueError, match=r"`x_embedder\.weight` \(16,\)"):
        FluxExtTransformer2DModel.from_state_dict(
            {**tiny_weights(), "x_embedder.weight": torch.zeros(16)}, axes_dims_rope=AXES
        )


def test_overrides_that_contradict_the_weights_raise() -> None:
    with pytest.raises(ValueError, match=r"`single_transformer_blocks\.2\.attn\.norm_k\.weight`"):
        FluxExtTransformer2DModel.from_state_dict(tiny_weights(), axes_dims_rope=AXES, num_single_layers=2)
    with pytest.raises(ValueError, match="16 wide, which 3 heads of 8"):
        FluxExtTransformer2DModel.from_state_dict(tiny_weights(), axes_dims_rope=AXES, num_attention_heads=3)
    with pytest.raises(TypeError, match=r"Unknown arguments of the model: \['depth'\]"):
        FluxExtTransformer2DModel.from_state_dict(tiny_weights(), axes_dims_rope=AXES, depth=2)


def test_files_that_are_none_raise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="hf_hub_download"):
        FluxExtTransformer2DModel.from_single_file(tmp_path / "absent.safetensors")
    torch.save(tiny_weights(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt` is not an intact safetensors file|not a whole safetensors file"):
        FluxExtTransformer2DModel.from_single_file(tmp_path / "model.pt")


def test_folders_of_either_class_load_in_the_other(tmp_path: Path) -> None:
    stock = tiny_stock()
    stock.save_pretrained(tmp_path / "stock")
    ours = FluxExtTransformer2DModel.from_pretrained(tmp_path / "stock")
    assert_same_model(ours, stock)
    ours.save_pretrained(tmp_path / "ours")
    back = FluxTransformer2DModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(velocity(back), velocity(stock))


def test_attention_layers_start_with_the_regional_processor() -> None:
    ours = FluxExtTransformer2DModel(**TINY)
    assert len(ours.attn_processors) == 5
    assert all(type(processor) is FluxRegionalAttnProcessor for processor in ours.attn_processors.values())


def test_lists_for_compilation_and_splitting_are_the_base_class() -> None:
    ours = FluxExtTransformer2DModel
    assert ours._repeated_blocks == FluxTransformer2DModel._repeated_blocks
    assert ours._no_split_modules == FluxTransformer2DModel._no_split_modules
    ours_defaults, stock_defaults = (
        {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}
        for kind in (ours, FluxTransformer2DModel)
    )
    assert ours_defaults == stock_defaults
