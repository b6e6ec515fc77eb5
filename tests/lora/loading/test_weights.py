"""`set_adapters` does what diffusers' does, says what it leaves out, and stops at no layer."""

import math

import pytest
from diffusers import FluxPipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer


def attention_lora(targets):
    model = tiny_transformer(0)
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    return {f"transformer.{key}": value for key, value in get_peft_model_state_dict(model).items()}


def loaded(pipeline_class, targets=r".*(to_q|proj_out|x_embedder)"):
    pipe = tiny_pipeline(pipeline_class)
    for name in "ab":
        pipe.load_lora_weights(attention_lora(targets), adapter_name=name)
    return pipe


def scales(pipe):
    layers = pipe.transformer.named_modules()
    return {name: dict(layer.scaling) for name, layer in layers if isinstance(layer, BaseTunerLayer)}


@pytest.mark.parametrize(
    "weights",
    [None, 0.5, [0.5, 0.25], [{"transformer": 0.5}, 0.25], [{"transformer": 0.5}, {"transformer": 0.25}],
     [{"transformer": {"single_transformer_blocks": 0.5}}, {"transformer": {"transformer_blocks": 0.5, "attn": 2.0}}],
     [{"text_encoder": 0.5}, {"transformer": None}]],
)  # fmt: skip
def test_weights_mean_what_they_mean_to_diffusers(weights):
    pipes = [loaded(kind, r".*to_q") for kind in (FluxConditionedPipeline, FluxPipeline)]
    for pipe in pipes:
        pipe.set_adapters(["a", "b"], weights)
    assert scales(pipes[0]) == scales(pipes[1])


def test_one_dict_holds_for_every_adapter():
    pipe, weights = loaded(FluxConditionedPipeline), {"transformer": 0.5}
    pipe.set_adapters(["a", "b"], weights)
    assert all(scale == {"a": 0.5, "b": 0.5} for scale in scales(pipe).values())
    assert weights == {"transformer": 0.5}


@pytest.mark.parametrize("weights", [{"typo": 0.5}, [{"typo": 0.5}, 1.0], [{"transformer": {"typo": 0.5}}, 1.0]])
def test_names_that_mean_nothing_are_reported(weights, caplog):
    pipe = loaded(FluxConditionedPipeline)
    pipe.set_adapters(["a", "b"], weights)
    assert "typo" in caplog.text
    assert all(scale == {"a": 1.0, "b": 1.0} for scale in scales(pipe).values())


def test_weights_of_blocks_leave_other_layers_alone():
    """diffusers raises an IndexError where a LoRA has layers outside of the blocks."""
    pipe = loaded(FluxConditionedPipeline)
    pipe.set_adapters("a", {"transformer": {"single_transformer_blocks": 0.5}})
    found = scales(pipe)
    assert found["x_embedder"]["a"] == found["proj_out"]["a"] == found["transformer_blocks.0.attn.to_q"]["a"] == 1
    assert found["single_transformer_blocks.0.proj_out"]["a"] == 0.5


@pytest.mark.parametrize(
    "names, weights, message",
    [
        (["a", "b"], [1.0], "1 weights for the 2 adapters"),
        ("a", "strong", "'strong'"),
        ("a", math.nan, "nan"),
        (["a", "b"], [{"transformer": math.inf}, 1.0], "inf"),
        ("a", {"transformer": {"to_q": "x"}}, "'x'"),
        ("c", 1.0, "c"),
    ],
)
def test_wrong_weights_are_refused_before_anything_changes(names, weights, message):
    pipe = loaded(FluxConditionedPipeline)
    before = scales(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.set_adapters(names, weights)
    assert scales(pipe) == before
