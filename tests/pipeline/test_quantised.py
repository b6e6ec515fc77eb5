"""Quantised transformers with every method, LoRA and offloading: what the same weights unpacked compute."""

import pytest
import torch

from benchmarks.support.conditions import METHODS
from benchmarks.support.lora_files import make
from benchmarks.support.quantised.kinds import (
    KINDS,
    condition_difference,
    pipeline_of,
    quantised_transformer,
    text_difference,
    use_difference,
)
from benchmarks.support.quantised.uses import COMPILED, USES
from benchmarks.support.single_files import write_gguf
from diffusers_flux_ext import FluxConditionedPipeline, LoRAError, extract_lora
from diffusers_flux_ext.testing import call_kwargs


TOLERANCE = 1e-4
QUICK = ("GGUF Q8_0",)
# The others are in the table of the documentation.
TESTED = ("GGUF Q8_0", "GGUF Q4_0", "torchao int8", "quanto int8", "bitsandbytes nf4")
# Uses that are refused, by the kinds of which they are, and what the error says.
REFUSED: dict[str, tuple[str, str]] = {
    "`fuse_lora`": ("", "LoRAs cannot be fused exactly"),
    "`fuse_qkv_projections`": ("GGUF torchao bitsandbytes", "cannot have its projections fused"),
    "VRAM budget, fp8 storage": ("", "cannot be stored in torch.float8_e4m3fn as well"),
    "VRAM budget, RAM budget": ("", "cannot go to disk"),
    "`stream_from_disk`": ("", "cannot be streamed from disk"),
    "`enable_layerwise_casting`": ("", "cannot be stored in torch.float8_e4m3fn as well"),
    "LoRA with biases": ("torchao", "no layers with biases for weights that torchao quantised"),
    "dense deltas": ("torchao", "no layers with biases"),
    "control LoRA": ("torchao", "no layers with biases"),
    "VRAM budget, all on the card": ("quanto bitsandbytes", "do not move in parts"),
    "VRAM budget, blocks": ("quanto bitsandbytes", "do not move in parts"),
    "VRAM budget, LoRA": ("quanto bitsandbytes", "do not move in parts"),
}


def needs(kind):
    pytest.importorskip(KINDS[kind][0], reason=f"{KINDS[kind][0]} is not installed")
    return kind


def cases(names):
    """Every name with every tested kind; those of `QUICK` are not slow."""
    return [
        pytest.param(name, kind, marks=[] if kind in QUICK else pytest.mark.slow) for name in names for kind in TESTED
    ]


@pytest.mark.parametrize("name, kind", cases(METHODS))
def test_every_method(name, kind):
    assert condition_difference(name, needs(kind)) < TOLERANCE


@pytest.mark.parametrize("use, kind", cases(name for name in USES if name != COMPILED))
def test_every_use(use, kind):
    needs(kind)
    kinds, message = REFUSED.get(use, ("none", ""))
    if not kinds or kind.split()[0] in kinds.split():
        with pytest.raises(ValueError, match=message):
            use_difference(use, kind)
    else:
        assert use_difference(use, kind) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchao int8"])
def test_compiled_blocks(kind):
    assert use_difference(COMPILED, needs(kind)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_t5(kind):
    assert text_difference("nothing else", needs(kind)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["diffusers_peft", "onetrainer_dora"])
def test_a_lora_leaves_no_trace(kind, format):
    pipe, file = pipeline_of(quantised_transformer(needs(kind))), make(format)
    before = pipe(**call_kwargs()).images
    pipe.load_lora_weights(file.state_dict, "one", metadata=file.metadata)
    assert (pipe(**call_kwargs()).images - before).abs().max() > 1e-3
    pipe.disable_lora()
    assert torch.equal(pipe(**call_kwargs()).images, before)
    pipe.enable_lora()
    pipe.unload_lora_weights()
    assert torch.equal(pipe(**call_kwargs()).images, before)


def test_a_refused_lora_leaves_no_trace():
    pipe, file = pipeline_of(quantised_transformer(needs("torchao int8"))), make("diffusers_peft_bias")
    before = [name for name, _ in pipe.transformer.named_modules()]
    with pytest.raises(LoRAError, match="changes biases"):
        pipe.load_lora_weights(file.state_dict, "one", metadata=file.metadata)
    assert [name for name, _ in pipe.transformer.named_modules()] == before
    assert pipe.get_list_adapters() == {}


def test_a_stock_model_that_was_cast_is_refused_at_the_call(tmp_path):
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

    from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer

    pytest.importorskip("gguf")
    tiny_transformer(0).save_config(tmp_path)
    path = write_gguf(tmp_path / "x.gguf", tiny_transformer(0).state_dict())
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    model = FluxTransformer2DModel.from_single_file(str(path), config=str(tmp_path), quantization_config=config)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(ValueError, match="FluxTransformer2DModel is quantised by GGUF.*layerwise casting"):
        tiny_pipeline(FluxConditionedPipeline, transformer=model)(**call_kwargs())


def test_no_lora_is_extracted_from_quantised_weights(tmp_path):
    pytest.importorskip("gguf")
    model = quantised_transformer("GGUF Q8_0")
    path = write_gguf(tmp_path / "x.gguf", {"double_blocks.0.img_attn.qkv.weight": torch.ones(96, 32)})
    with pytest.raises(LoRAError, match="x.gguf` is a GGUF file. Quantised weights cannot be worked on"):
        extract_lora(path, path, rank=2)
    with pytest.raises(LoRAError, match="not floating-point numbers.*Quantised weights cannot be worked on"):
        extract_lora(model.state_dict(), model.state_dict(), rank=2)
