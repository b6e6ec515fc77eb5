"""LoRA files in DiffSynth's layout load with the updates they mean."""

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

from diffusers_flux_ext import FluxConditionedPipeline, FluxEliGenPipeline, convert_lora, detect_lora_format
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline


RANK = 3
ENDINGS = {"default": ".default.weight", "plain": ".weight"}


def diffsynth_linears(transformer):
    """Shapes of the Linears in DiffSynth's layout, from the converted weights themselves."""
    weights = convert_transformer_state_dict(transformer.state_dict(), to="diffsynth")
    return {key[: -len(".weight")]: tuple(value.shape) for key, value in weights.items() if value.ndim == 2}


def make_lora(transformer, ending=".default.weight", prefix="", alpha=None):
    lora = {}
    for index, (name, (rows, columns)) in enumerate(diffsynth_linears(transformer).items()):
        lora[f"{prefix}{name}.lora_A{ending}"] = torch.randn(RANK, columns, generator=seeded(index)) * 0.1
        lora[f"{prefix}{name}.lora_B{ending}"] = torch.randn(rows, RANK, generator=seeded(index + 1000)) * 0.1
        if alpha is not None:
            lora[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return lora


def updated_weights(transformer, lora, ending, prefix="", scale=1.0):
    """The base weights plus delta W, added in DiffSynth's layout and converted back."""
    weights = convert_transformer_state_dict(transformer.state_dict(), to="diffsynth")
    for name in diffsynth_linears(transformer):
        down, up = lora[f"{prefix}{name}.lora_A{ending}"], lora[f"{prefix}{name}.lora_B{ending}"]
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + scale * up @ down
    return convert_transformer_state_dict(weights, to="diffusers")


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("prefix", ["", "pipe.dit."])
@pytest.mark.parametrize("alpha", [None, 6.0, 6])
def test_the_loaded_lora_is_the_files_update(tmp_path, ending, prefix, alpha):
    pipe = tiny_pipeline(FluxEliGenPipeline)
    lora = make_lora(pipe.transformer, ending, prefix, alpha)
    save_file(lora, tmp_path / "eligen.safetensors")
    scale = 1.0 if alpha is None else alpha / RANK
    expected = updated_weights(pipe.transformer, lora, ending, prefix, scale)
    pipe.load_lora_weights(tmp_path, weight_name="eligen.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for name, weight in pipe.transformer.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5)


def test_load_by_file_path_and_unload_restores_the_picture(tmp_path):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before = pipe(**call_kwargs()).images
    path = tmp_path / "eligen.safetensors"
    save_file(make_lora(pipe.transformer), path)
    pipe.load_lora_weights(str(path), adapter_name="eligen")
    assert (pipe(**call_kwargs()).images - before).abs().max() > 1e-3
    pipe.set_adapters(["eligen"], [0.0])
    assert torch.equal(pipe(**call_kwargs()).images, before)
    pipe.unload_lora_weights()
    assert torch.equal(pipe(**call_kwargs()).images, before)


def test_a_partial_lora_and_a_state_dict():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    lora = {key: value for key, value in make_lora(pipe.transformer).items() if key.startswith("single_blocks.1.")}
    given = dict(lora)
    pipe.load_lora_weights(lora)
    assert lora.keys() == given.keys()
    assert all(lora[key] is given[key] for key in lora)
    adapted = {name for name, module in pipe.transformer.named_modules() if hasattr(module, "lora_A")}
    assert adapted
    assert all(name.startswith("single_transformer_blocks.1.") for name in adapted)


def test_the_converted_dict_loads_into_a_stock_pipeline():
    stock, ours = tiny_pipeline(FluxPipeline), tiny_pipeline(FluxConditionedPipeline)
    lora = make_lora(stock.transformer)
    stock.load_lora_weights(convert_lora(lora)[0])
    ours.load_lora_weights(lora)
    assert torch.equal(stock(**call_kwargs()).images, ours(**call_kwargs()).images)


def test_diffusers_files_still_load(tmp_path):
    source, target = tiny_pipeline(FluxConditionedPipeline), tiny_pipeline(FluxConditionedPipeline)
    source.load_lora_weights(make_lora(source.transformer))
    layers = {
        key.replace(".default_0", ""): value
        for key, value in source.transformer.state_dict().items()
        if "lora_" in key
    }
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, weight_name="lora.safetensors")
    target.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    torch.testing.assert_close(source(**call_kwargs()).images, target(**call_kwargs()).images)
    assert detect_lora_format({f"transformer.{key}": value for key, value in layers.items()}) == "diffusers_peft"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blocks.0.attn.a_to_other.lora_A.default.weight": (3, 32)}, "a_to_other"),
        ({"blocks.0.attn.a_to_qkv.lora_C.default.weight": (3, 32)}, "lora_C"),
        ({"blocks.9.attn.a_to_qkv.lora_A.default.weight": (3, 32)}, "incomplete"),
        (
            {
                "blocks.9.attn.a_to_qkv.lora_A.default.weight": (3, 32),
                "blocks.9.attn.a_to_qkv.lora_B.default.weight": (96, 4),
            },
            "do not chain",
        ),
        (
            {
                "blocks.9.attn.a_to_qkv.lora_A.default.weight": (3, 32),
                "blocks.9.attn.a_to_qkv.lora_B.default.weight": (97, 3),
            },
            "97",
        ),
    ],
)
def test_files_that_are_not_understood_are_refused(change, message):
    lora = make_lora(tiny_pipeline(FluxConditionedPipeline).transformer)
    lora |= {key: torch.zeros(shape) for key, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        convert_lora(lora)
