"""Layouts of FLUX.1 transformer checkpoints: recognition, round trips, errors."""

from itertools import permutations

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext.checkpoints.layouts import (
    LAYOUTS,
    PREFIX,
    TENSORS,
    convert_transformer_state_dict,
    detect_transformer_layout,
    plan_transformer_conversion,
    spell_in_layout,
    split_block_index,
)


Weights = dict[str, torch.Tensor]


def tiny_weights(double: int = 2, single: int = 11, guidance: bool = True) -> Weights:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    return {key: torch.randn_like(weight) for key, weight in model.state_dict().items()}


def assert_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for key, weight in one.items():
        assert torch.equal(weight, other[key]), key


def test_the_table_has_every_tensor_of_the_model_once() -> None:
    forms = {split_block_index(key)[0] for key in tiny_weights()}
    keys = [key for names in TENSORS for key in names.diffusers]
    assert sorted(keys) == sorted(forms)
    for layout in LAYOUTS:
        spelled = [key for names in TENSORS for key in names.keys(layout)]
        assert len(spelled) == len(set(spelled))


@pytest.mark.parametrize(("one", "other"), list(permutations(LAYOUTS, 2)))
@pytest.mark.parametrize("guidance", [True, False])
def test_round_trips_are_bit_equal(one: str, other: str, guidance: bool) -> None:
    start = convert_transformer_state_dict(tiny_weights(guidance=guidance), to=one)
    there = convert_transformer_state_dict(start, to=other)
    assert detect_transformer_layout(start) == one
    assert detect_transformer_layout(there) == other
    assert start.keys() != there.keys()
    assert_same(convert_transformer_state_dict(there, to=one), start)


def test_conversions_commute() -> None:
    weights = tiny_weights()
    via_bfl = convert_transformer_state_dict(convert_transformer_state_dict(weights, to="bfl"), to="diffsynth")
    assert_same(via_bfl, convert_transformer_state_dict(weights, to="diffsynth"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_its_own_conversion(layout: str) -> None:
    weights = convert_transformer_state_dict(tiny_weights(), to=layout)
    assert_same(convert_transformer_state_dict(weights, to=layout), weights)


@pytest.mark.parametrize(("layout", "to"), [(one, other) for one in LAYOUTS for other in LAYOUTS])
def test_the_prefix_is_read_and_left_out(layout: str, to: str) -> None:
    bare = convert_transformer_state_dict(tiny_weights(), to=layout)
    prefixed = {PREFIX + key: weight for key, weight in bare.items()}
    assert detect_transformer_layout(prefixed) == layout
    assert_same(convert_transformer_state_dict(prefixed, to=to), convert_transformer_state_dict(bare, to=to))


def test_halves_of_the_last_modulation_are_swapped() -> None:
    weights = tiny_weights()
    scale, shift = weights["norm_out.linear.bias"].chunk(2)
    for layout, key in (("bfl", "final_layer.adaLN_modulation.1.bias"), ("diffsynth", "final_norm_out.linear.bias")):
        assert torch.equal(convert_transformer_state_dict(weights, to=layout)[key], torch.cat([shift, scale]))


def test_fused_rows_are_queries_keys_values_and_mlp() -> None:
    weights = tiny_weights()
    fused = convert_transformer_state_dict(weights, to="bfl")
    block = "single_transformer_blocks.10."
    parts = [weights[f"{block}{name}.weight"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert torch.equal(fused["single_blocks.10.linear1.weight"], torch.cat(parts))
    parts = [weights[f"transformer_blocks.1.attn.add_{name}_proj.bias"] for name in "qkv"]
    assert torch.equal(fused["double_blocks.1.txt_attn.qkv.bias"], torch.cat(parts))


@pytest.mark.parametrize("to", LAYOUTS)
def test_the_source_is_not_changed(to: str) -> None:
    weights = convert_transformer_state_dict(tiny_weights(), to="diffsynth")
    copies = {key: weight.clone() for key, weight in weights.items()}
    convert_transformer_state_dict(weights, to=to)
    assert_same(weights, copies)


@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS))
@settings(max_examples=20, deadline=None)
def test_plans_have_the_shapes_of_what_they_build(
    double: int, single: int, guidance: bool, one: str, two: str
) -> None:
    weights = convert_transformer_state_dict(tiny_weights(double, single, guidance), to=one)
    plan = plan_transformer_conversion({key: weight.shape for key, weight in weights.items()}, to=two)
    for key, weight in convert_transformer_state_dict(weights, to=two).items():
        assert plan[key].shape == tuple(weight.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_keys_are_spelled_in_every_layout(layout: str) -> None:
    weights = convert_transformer_state_dict(tiny_weights(), to=layout)
    assert {spell_in_layout(key, layout) for key in tiny_weights()} == set(weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unknown_keys_are_named_with_the_layout(layout: str) -> None:
    weights = convert_transformer_state_dict(tiny_weights(), to=layout)
    weights |= {f"double_blocks.0.lora_{index:02d}": torch.zeros(1) for index in range(13)}
    with pytest.raises(ValueError, match=rf"in the '{layout}' layout.*`double_blocks\.0\.lora_09` and 3 more"):
        convert_transformer_state_dict(weights)


def test_foreign_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="No key belongs to a FLUX.1 transformer"):
        detect_transformer_layout(["text_model.encoder.weight"])


def test_ambiguous_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="equally well"):
        detect_transformer_layout(["x_embedder.weight"])


def test_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="`to` is 'comfy'"):
        convert_transformer_state_dict(tiny_weights(), to="comfy")


def test_missing_part_of_a_fused_layer_is_named() -> None:
    weights = tiny_weights()
    del weights["transformer_blocks.1.attn.to_k.bias"]
    with pytest.raises(ValueError, match=r"missing: `transformer_blocks\.1\.attn\.to_k\.bias`"):
        convert_transformer_state_dict(weights, to="bfl")


def test_parts_that_do_not_fit_are_named() -> None:
    weights = tiny_weights()
    weights["single_transformer_blocks.0.proj_mlp.weight"] = torch.zeros(60, 16)
    with pytest.raises(ValueError, match=r"single_transformer_blocks\.0\.proj_mlp\.weight` \(60, 16\)"):
        convert_transformer_state_dict(weights, to="diffsynth")


def test_rows_that_cannot_be_split_are_named() -> None:
    weights = convert_transformer_state_dict(tiny_weights(), to="bfl")
    weights["single_blocks.3.linear1.weight"] = torch.zeros(111, 16)
    with pytest.raises(ValueError, match=r"single_blocks\.3\.linear1\.weight` has shape \(111, 16\)"):
        convert_transformer_state_dict(weights)


def test_twofold_keys_are_refused() -> None:
    weights = tiny_weights()
    with pytest.raises(ValueError, match="with and without the prefix"):
        convert_transformer_state_dict({**weights, PREFIX + "x_embedder.weight": weights["x_embedder.weight"]})
