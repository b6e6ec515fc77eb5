"""Saving and loading again gives the same images here and in diffusers, T5's parts and the metadata included."""

import inspect
import json

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders import FluxLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.support.lora_files import make
from diffusers_flux_ext import FluxConditionedPipeline, LoRAError, convert_lora, convert_lora_file
from diffusers_flux_ext.lora.reading.scale import PEFT_HEADER
from diffusers_flux_ext.testing import tiny_pipeline
from tests.lora.loading.test_load import picture
from tests.lora.lora_evaluation import assert_bit_equal, assert_same, meaning


TARGETS = {
    "transformer": ["to_q", "proj_out", "proj_mlp"],
    "text_encoder": ["q_proj", "fc1"],
    "text_encoder_2": ["q", "wo"],
}
# The first pattern that fits wins, and the general one is first in the alphabet.
OVERLAPPING = {"single_transformer_blocks.0.proj_out": 1, "proj_out": 2}


def with_adapters(pipe, components=tuple(TARGETS), **options):
    """A pipeline with PEFT's own adapters, and the arguments that save them."""
    arguments = {}
    for component in components:
        model, config = getattr(pipe, component), LoraConfig(r=4, target_modules=TARGETS[component], **options)
        torch.manual_seed(1)
        config.init_lora_weights = False
        inject_adapter_in_model(config, model, "default")
        arguments[f"{component}_lora_layers"] = get_peft_model_state_dict(model)
        arguments[f"{component}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    return arguments


@pytest.mark.parametrize("options", [{"lora_alpha": 2}, {"lora_alpha": 3, "use_rslora": True}])
def test_every_model_is_saved_with_its_scale(tmp_path, options):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    arguments = with_adapters(pipe, **options)
    expected = picture(pipe)
    pipe.save_lora_weights(tmp_path, **arguments)
    fresh = tiny_pipeline(FluxConditionedPipeline)
    fresh.load_lora_weights(tmp_path)
    assert torch.allclose(picture(fresh), expected, atol=1e-5)
    _, found = fresh.lora_state_dict(tmp_path, return_lora_metadata=True)
    for component in TARGETS:
        own = {key.partition(".")[2]: value for key, value in found.items() if key.startswith(f"{component}.")}
        given = arguments[f"{component}_lora_adapter_metadata"]
        assert own == json.loads(json.dumps(given, default=list))


@pytest.mark.parametrize("pipeline_class", [FluxConditionedPipeline, FluxPipeline])
@pytest.mark.parametrize("table", ["alpha_pattern", "rank_pattern"])
def test_patterns_keep_their_meaning_when_they_are_sorted(tmp_path, pipeline_class, table):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    arguments = with_adapters(pipe, ["transformer", "text_encoder"], lora_alpha=3, **{table: OVERLAPPING})
    expected = picture(pipe)
    pipe.save_lora_weights(tmp_path, **arguments)
    fresh = tiny_pipeline(pipeline_class)
    fresh.load_lora_weights(tmp_path)
    assert torch.allclose(picture(fresh), expected, atol=1e-5)


def config_of(alphas):
    config = LoraConfig(r=4, lora_alpha=3, target_modules=TARGETS["transformer"], alpha_pattern=alphas)
    return {f"transformer.{key}": value for key, value in config.to_dict().items()}


@pytest.mark.parametrize(
    "alphas",
    [OVERLAPPING, {"^proj_out": 5, "proj_out": 2, r"single_transformer_blocks\.\d+\.proj_out": 7},
     {"to_q": 1, "attn.to_q": 2, r"single_transformer_blocks.*": 9}],
)  # fmt: skip
def test_converting_writes_patterns_that_mean_the_same_in_any_order(tmp_path, alphas):
    layers = with_adapters(tiny_pipeline(FluxConditionedPipeline), ["transformer"])["transformer_lora_layers"]
    lora = {f"transformer.{key}": value for key, value in layers.items()}
    header = {PEFT_HEADER: json.dumps(config_of(alphas), default=list)}
    expected = meaning(lora, header)
    convert_lora_file(lora, tmp_path / "lora.safetensors", metadata=header)
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        written = json.loads(file.metadata()[PEFT_HEADER])
    pattern = written["transformer.alpha_pattern"]
    for order in (dict(sorted(pattern.items())), dict(sorted(pattern.items(), reverse=True))):
        text = json.dumps({**written, "transformer.alpha_pattern": order})
        assert_same(meaning(lora, {PEFT_HEADER: text}), expected, 0)
    images = []
    for source in (lora, tmp_path / "lora.safetensors"):
        pipe = tiny_pipeline(FluxPipeline if source is not lora else FluxConditionedPipeline)
        pipe.load_lora_weights(source, **({"metadata": header} if source is lora else {}))
        images.append(picture(pipe))
    assert torch.allclose(*images, atol=1e-5)


def test_a_header_whose_order_does_not_matter_is_kept_as_it_is():
    file = make("diffusers_peft_meta", "alpha_by_module")
    _, header = convert_lora(file.state_dict, "diffusers", file.metadata)
    assert json.loads(header[PEFT_HEADER]) == json.loads(file.metadata[PEFT_HEADER])


def test_reading_gives_alphas_or_metadata_and_never_both(tmp_path):
    file = make("diffusers_peft_meta", "alpha_half")
    save_file(file.state_dict, tmp_path / "lora.safetensors", file.metadata)
    read = FluxConditionedPipeline.lora_state_dict
    tensors, alphas, metadata = read(tmp_path / "lora.safetensors", return_alphas=True, return_lora_metadata=True)
    assert metadata == json.loads(file.metadata[PEFT_HEADER])
    assert alphas == {}
    assert_bit_equal(tensors, file.state_dict)
    _, alphas = read(tmp_path / "lora.safetensors", return_alphas=True)
    assert alphas
    assert all(isinstance(alpha, float) for alpha in alphas.values())
    _, metadata = read(make("kohya").state_dict, return_lora_metadata=True)
    assert metadata is None


def test_alphas_may_be_named_after_a_factor():
    """So diffusers writes and reads them in its own tests."""
    lora = make("diffusers_peft").state_dict
    key = next(key for key in lora if "to_k.lora_A" in key)
    layer = key.removesuffix(".lora_A.weight")
    named, plain = ({**lora, name: 3.0} for name in (f"{key}.alpha", f"{layer}.alpha"))
    assert_same(meaning(named), meaning(plain), 0)
    with pytest.raises(LoRAError, match="twice"):
        meaning({**named, f"{layer}.alpha": 3.0})


def test_the_signatures_are_those_of_diffusers_and_more():
    for name, method in inspect.getmembers(FluxLoraLoaderMixin, callable):
        if name.startswith("_"):
            continue
        stock = inspect.signature(method).parameters
        ours = inspect.signature(getattr(FluxConditionedPipeline, name)).parameters
        takes_all = any(each.kind is each.VAR_KEYWORD for each in ours.values())
        assert set(stock) <= set(ours) or takes_all, name
        order = [each for each in ours if each in stock]
        assert order == [each for each in stock if each in ours], name


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="text_encoder_2_lora_layers"):
        FluxConditionedPipeline.save_lora_weights(tmp_path / "new")
    layers = {"to_q.lora_A.weight": torch.ones(2, 4), "to_q.lora_B.weight": torch.ones(4, 2)}
    with pytest.raises(LoRAError, match="transformer_lora_adapter_metadata"):
        FluxConditionedPipeline.save_lora_weights(tmp_path / "new", layers, transformer_lora_adapter_metadata="r=4")
    assert not (tmp_path / "new").exists()
