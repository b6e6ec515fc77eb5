"""LoRAs are fused into plain weights only; elsewhere an error says so, and unfused they go on working."""

import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from benchmarks.support.lora_files import make
from diffusers_flux_ext import FluxConditionedPipeline, LoRAError, load_lora
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from tests.lora.loading.test_load import picture, weights_of


quanto = pytest.importorskip("optimum.quanto")


def quantised_by_quanto(frozen=True):
    model = tiny_transformer(0)
    quanto.quantize(model, weights=quanto.qint8)
    if frozen:
        quanto.freeze(model)
    return model


def stored_in_8_bits():
    model = tiny_transformer(0)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return model


def with_tensors_of_a_class():
    """As torchao stores weights: a Linear whose parameter is of a class of its own."""

    class Quantised(torch.Tensor):
        pass

    model = tiny_transformer(0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised), requires_grad=False)
    return model


@pytest.mark.parametrize(
    "make_model", [quantised_by_quanto, lambda: quantised_by_quanto(False), stored_in_8_bits, with_tensors_of_a_class]
)
@pytest.mark.parametrize("format", ["diffusers_peft", "aitoolkit_lokr"])
def test_quantised_weights_are_refused_and_nothing_changes(make_model, format):
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=make_model())
    plain, file = picture(pipe), make(format)
    pipe.load_lora_weights(file.state_dict, "style", metadata=file.metadata)
    tuned = picture(pipe)
    assert (tuned - plain).abs().max() > 1e-3
    with pytest.raises(LoRAError, match="fuse_lora_into"):
        pipe.fuse_lora()
    assert torch.equal(picture(pipe), tuned)


def test_other_products_are_refused_in_diffusers_own_pipelines():
    pipe = tiny_pipeline(FluxPipeline, transformer=quantised_by_quanto())
    load_lora(pipe, make("aitoolkit_lokr").state_dict)
    with pytest.raises(LoRAError, match="cannot be fused"):
        pipe.fuse_lora()


def test_gguf_is_refused(tmp_path):
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    model = tiny_transformer(0)
    weight = model.transformer_blocks[0].attn.to_q.weight.detach()
    packed = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    layer = GGUFLinear(32, 32, bias=False, compute_dtype=torch.float32)
    layer.weight = GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)
    model.transformer_blocks[0].attn.to_q = layer
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=model)
    load_lora(pipe, make("diffusers_peft").state_dict)
    with pytest.raises(LoRAError, match="GGUFLinear"):
        pipe.fuse_lora()


def test_only_the_models_that_are_fused_have_to_be_plain():
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=quantised_by_quanto())
    pipe.load_lora_weights(make("kohya", "with_both").state_dict, "style")
    before = weights_of(pipe)
    pipe.fuse_lora(components=["text_encoder"])
    found = weights_of(pipe)
    changed = {key.partition(".")[0] for key in before if not torch.equal(found[key], before[key])}
    assert changed == {"text_encoder"}


def test_unfusing_reaches_every_text_encoder():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights(make("kohya", "with_both").state_dict, "style")
    tuned = picture(pipe)
    pipe.fuse_lora(components=["transformer", "text_encoder", "text_encoder_2"])
    assert pipe.num_fused_loras == 1
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert (picture(pipe) - tuned).abs().max() < 1e-4
