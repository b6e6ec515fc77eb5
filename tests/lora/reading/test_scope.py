"""LoRAs that are meant for some tokens only are recognised by their layers, and said to be so."""

import re

import pytest
from peft import LoraConfig, get_peft_model_state_dict

from benchmarks.support.lora_files import FORMATS, make
from diffusers_flux_ext import FluxConditionedPipeline, convert_lora, fuse_lora_into, inspect_lora, load_lora
from diffusers_flux_ext.lora.reading.read import read_lora
from diffusers_flux_ext.lora.reading.scope import find_token_scope
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer


# The pattern of OminiControl's configs, which XVerse and others took over.
DOUBLE = r".*(?<!single_)transformer_blocks\.[0-9]+\."
SINGLE = r".*single_transformer_blocks\.[0-9]+\."
OMINI_CONTROL = "|".join(
    [
        ".*x_embedder",
        *(
            DOUBLE + re.escape(name)
            for name in ("norm1.linear", "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")
        ),
        DOUBLE + r"ff\.net\.2",
        *(SINGLE + name for name in (r"norm\.linear", "proj_mlp", "proj_out", "attn.to_k", "attn.to_q", "attn.to_v")),
        SINGLE + "attn.to_out",
    ]
)


def trained(pattern):
    model = tiny_transformer(0)
    model.add_adapter(LoraConfig(r=2, target_modules=f"({pattern})", init_lora_weights=False))
    return {f"transformer.{key}": value for key, value in get_peft_model_state_dict(model).items()}


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "diffsynth"])
def test_omini_control_is_recognised_in_every_layout(layout):
    lora, _ = convert_lora(trained(OMINI_CONTROL), layout)
    assert any("OminiControl" in warning for warning in inspect_lora(lora).warnings)


def test_loading_and_fusing_warn(caplog):
    lora = trained(OMINI_CONTROL)
    load_lora(tiny_pipeline(FluxConditionedPipeline), lora)
    assert caplog.text.count("acts on every token") == 1
    fuse_lora_into(tiny_transformer(0).state_dict(), lora)
    assert caplog.text.count("acts on every token") == 2


@pytest.mark.parametrize(
    "pattern", ["x_embedder|.*to_[qkv]", OMINI_CONTROL + r"|.*ff\.net\.0\.proj", OMINI_CONTROL + r"|.*add_q_proj"]
)
def test_other_choices_of_layers_are_not_suspected(pattern):
    assert not any("OminiControl" in warning for warning in inspect_lora(trained(pattern)).warnings)


@pytest.mark.parametrize("format", FORMATS)
def test_no_trainer_is_suspected(format):
    file = make(format)
    assert find_token_scope(read_lora(file.state_dict, file.metadata).layers.values()) is None
