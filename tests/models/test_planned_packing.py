"""Plans of quantised files that are not at hand: the sizes of those that are."""

import pytest
import torch

from benchmarks.support.quantised.kinds import KINDS as LIBRARIES
from benchmarks.support.quantised.kinds import quantised_transformer
from diffusers_flux_ext import FluxConditionedPipeline, FluxExtTransformer2DModel
from diffusers_flux_ext.checkpoints.packed_weights import stored_bytes
from diffusers_flux_ext.methods.catalog import plan_methods
from diffusers_flux_ext.models.planned_packing import KINDS, check_kind, pack_on_paper
from diffusers_flux_ext.offload.blocks import streamable_blocks
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


def block_bytes(model):
    return sum(stored_bytes(each) for block in streamable_blocks(model).values() for each in block.parameters())


@pytest.mark.parametrize(
    "kind, real", [("gguf-q8_0", "GGUF Q8_0"), ("gguf-q4_0", "GGUF Q4_0"), ("int8", "torchao int8"),
                   ("fp8", "torchao float8")]
)  # fmt: skip
def test_the_bytes_of_real_ones(kind, real):
    pytest.importorskip(LIBRARIES[real][0], reason=f"{LIBRARIES[real][0]} is not installed")
    model = tiny_transformer(0).to("meta")
    pack_on_paper(model, kind, streamable_blocks(model))
    assert block_bytes(model) == pytest.approx(block_bytes(quantised_transformer(real)), rel=0.02)


def test_released_sizes_by_the_files_that_circulate():
    # Published GGUF files of FLUX.1-dev in GB; all of their tensors together.
    for kind, size in {"gguf-q8_0": 12.7, "gguf-q4_0": 6.79}.items():
        plan = plan_methods((), "FLUX.1-dev", 24, quantization={"transformer": kind})
        assert plan.component("transformer").total / 1e9 == pytest.approx(size, rel=0.02)


def test_a_text_encoder():
    def blocks(**kinds):
        found = plan_methods((), "FLUX.1-dev", 24, quantization=kinds).component("text_encoder_2")
        return sum({**found.resident, **found.streamed}.values())

    assert blocks(text_encoder_2="gguf-q8_0") / blocks() == pytest.approx(34 / 64, rel=0.02)
    with pytest.raises(ValueError, match="names 'unet', but the models are"):
        plan_methods((), "FLUX.1-dev", 24, quantization={"unet": "int8"})


@pytest.mark.parametrize(
    "kind, reason", [("nf4", "do not move in parts"), ("nunchaku", "in one call of its own"), ("q4", "is not known")]
)
def test_what_cannot_be_planned(kind, reason):
    with pytest.raises(ValueError, match=f"Quantisation '{kind}' cannot be planned: .*{reason}.*GGUF files, torchao"):
        check_kind(kind)
    assert "gguf-q4_k" in KINDS


def test_nunchaku_is_named_with_what_runs_instead():
    names = [f"transformer_blocks.0.qkv_proj.{part}" for part in ("qweight", "wscales", "smooth", "proj_down")]
    with pytest.raises(ValueError, match=r"This file is nunchaku's.*GGUF files, torchao"):
        FluxExtTransformer2DModel.from_state_dict({name: torch.ones(2, 2) for name in names})
    model = tiny_transformer(0)
    kind = type("NunchakuFluxTransformer2dModel", (type(model),), {"__module__": "nunchaku.models.transformers"})
    model.__class__ = kind
    with pytest.raises(ValueError, match=r"This transformer is nunchaku's.*GGUF files, torchao"):
        tiny_pipeline(FluxConditionedPipeline, transformer=model)(**call_kwargs())
