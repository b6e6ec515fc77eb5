"""Patterns of names, and what is suggested for one that matches nothing."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from diffusers_flux_ext.checkpoints.layouts import split_block_index
from diffusers_flux_ext.lora.keys import layer_in_namespace
from diffusers_flux_ext.testing import tiny_text_encoder, tiny_text_encoder_2, tiny_transformer
from diffusers_flux_ext.training.trained.names import linear_layers, select
from diffusers_flux_ext.training.trained.options import LoRAOptions
from diffusers_flux_ext.training.trained.presets import LORA_PRESETS


@pytest.fixture(scope="module")
def released() -> FluxTransformer2DModel:
    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


@pytest.fixture(scope="module")
def names(released: FluxTransformer2DModel) -> list[str]:
    return list(linear_layers(released))


@pytest.mark.parametrize(
    "preset, count", [("attention", 266), ("attention+mlp", 418), ("reference", 494), ("all-linear", 504)]
)
def test_presets_have_as_many_layers_as_the_documentation_says(
    released: FluxTransformer2DModel, preset: str, count: int
) -> None:
    assert len(LoRAOptions(preset).layers(released)) == count


# Ends of names in DiffSynth-Studio's recipes for LoRA.
RECIPE = (
    "a_to_qkv,b_to_qkv,a_to_out,b_to_out,ff_a.0,ff_a.2,ff_b.0,ff_b.2,norm1_a.linear,norm1_b.linear,to_qkv_mlp,proj_out,"
    "norm.linear"
).split(",")


def fused(names: list[str]) -> set[str]:
    """The layers of the reference that hold layers of diffusers."""
    forms = [split_block_index(name) for name in names]
    return {layer_in_namespace(form, "diffsynth").form.format(index) for form, index in forms}


def test_the_reference_preset_is_the_recipes_304_layers(names: list[str]) -> None:
    assert len(fused(select(names, LORA_PRESETS["transformer"]["reference"], "targets", "Linear"))) == 304


def test_parity_the_reference_preset_is_what_the_recipes_match() -> None:
    from benchmarks.support.reference.dit import reference_dit

    transformer = tiny_transformer()
    linears = [
        name for name, layer in reference_dit(transformer).named_modules() if isinstance(layer, torch.nn.Linear)
    ]
    # As PEFT matches a list of names.
    matched = {name for name in linears if any(name == end or name.endswith(f".{end}") for end in RECIPE)}
    assert fused(list(LoRAOptions("reference").layers(transformer))) == matched


@pytest.mark.parametrize("preset, clip, t5", [("attention", 8, 8), ("attention+mlp", 12, 14), ("all-linear", 12, 14)])
def test_presets_of_text_encoders(preset: str, clip: int, t5: int) -> None:
    options = LoRAOptions(preset)
    assert len(options.layers(tiny_text_encoder(), "text_encoder")) == clip
    assert len(options.layers(tiny_text_encoder_2(), "text_encoder_2")) == t5


@pytest.mark.parametrize(
    "pattern, count",
    [
        ("proj_out", 1),
        ("*proj_out", 39),
        ("transformer_blocks.3", 14),
        ("transformer_blocks.0-1", 28),
        ("re:single_transformer_blocks\\.[0-9]\\.attn\\.to_q", 10),
        ("*.attn.to_q", 57),
    ],
)
def test_patterns_match_whole_names(names: list[str], pattern: str, count: int) -> None:
    chosen = select(names, [pattern], "targets", "Linear")
    assert len(chosen) == count
    assert chosen == [name for name in names if name in chosen]


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("to_q", "write '\\*.to_q' for 'transformer_blocks.0.attn.to_q' and 56 more"),
        ("*.attn.to_qq", "The nearest are 'transformer_blocks.0.attn.to_q'|'single_transformer_blocks.0.attn.to_q'"),
        ("transformer_blocks.3.attn.to_qq", "The nearest are 'transformer_blocks.3.attn.to_q'"),
        ("transformer_blocks.18-19", "'transformer_blocks.19', which matches no Linear.*'transformer_blocks.1"),
        ("re:(", "'re:\\(', which is not a regular expression"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(names: list[str], pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(names, ["proj_out", pattern], "targets", "Linear")


def test_a_single_text_is_no_list_of_patterns(names: list[str]) -> None:
    with pytest.raises(TypeError, match="expected a list of names"):
        select(names, "proj_out", "targets", "Linear")


def test_targets_are_narrowed_by_blocks_and_exclusions(released: FluxTransformer2DModel) -> None:
    options = LoRAOptions("attention", blocks=["transformer_blocks.0-1"], exclude=["*.to_k", "*.add_k_proj"])
    layers = options.layers(released)
    assert len(layers) == 2 * 6
    assert not any("to_k" in name for name in layers)
    with pytest.raises(ValueError, match="leave no Linear"):
        LoRAOptions(["proj_out"], exclude=["proj_out"]).layers(released)
    with pytest.raises(ValueError, match="`exclude` has '\\*.proj_mlp', which matches no target"):
        LoRAOptions("attention", exclude=["*.proj_mlp"]).layers(released)


def test_ranks_and_alphas_by_pattern(released: FluxTransformer2DModel) -> None:
    options = LoRAOptions(
        ["attention", "proj_out"],
        rank=8,
        ranks={"transformer_blocks.0.attn.to_q": 4, "transformer_blocks.0": 2},
        alphas={"proj_out": 1.0},
    )
    layers = options.layers(released)
    assert layers["transformer_blocks.0.attn.to_q"] == (4, 4.0)
    assert layers["transformer_blocks.0.attn.to_k"] == (2, 2.0)
    assert layers["transformer_blocks.1.attn.to_q"] == (8, 8.0)
    assert layers["proj_out"] == (8, 1.0)
    assert LoRAOptions("attention", rank=8, alpha=4).layers(released)["transformer_blocks.1.attn.to_q"] == (8, 4.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "`rank` has \\[0\\]"),
        ({"rank": True}, "`rank` has \\[True\\]"),
        ({"ranks": {"*": 2.5}}, "`ranks` has \\[2.5\\]"),
        ({"alpha": 0}, "`alpha` has \\[0\\]"),
        ({"alpha": float("nan")}, "`alpha` has \\[nan\\]"),
        ({"dropout": 1.0}, "`dropout` is 1.0"),
        ({"kind": "loha"}, "`kind` is 'loha'; expected one of \\['lora', 'dora', 'lokr'\\]"),
        ({"init": "zero"}, "`init` is 'zero'"),
        ({"factor": 0}, "`factor` is 0"),
        ({"kind": "lokr", "tied": True, "dropout": 0.1}, "'lokr' has no \\['tied', 'dropout'\\]"),
        ({"kind": "dora", "bias": True}, "'dora' has no \\['bias'\\]"),
        ({"factor": 8}, "'lora' has no \\['factor'\\]"),
    ],
)
def test_wrong_options_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAOptions(**arguments)
