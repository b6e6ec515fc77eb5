"""A frozen base in 8 or 4 bits: what it takes, and that gradients are those of the weights that it stands for."""

import copy

import pytest
import torch

from diffusers_flux_ext.checkpoints.packed_weights import stored_bytes
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import FluxTraining
from diffusers_flux_ext.training.frozen import FP8Linear, planned_bytes, store_frozen
from diffusers_flux_ext.training.trained import LoRAOptions, add_lora

from .samples import batch


def transformer_for(kind):
    """A frozen transformer; bitsandbytes' blocks of 64 ask for one of twice the width."""
    if kind != "nf4":
        return tiny_transformer().requires_grad_(False)
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    return tiny_transformer(attention_head_dim=32, axes_dims_rope=(8, 12, 12)).requires_grad_(False)


def stored(kind):
    """A stored transformer, and one of ordinary weights that computes the same."""
    transformer = transformer_for(kind)
    plain = copy.deepcopy(transformer)
    store_frozen(transformer, kind)
    for name, layer in transformer.named_modules():
        if isinstance(layer, FP8Linear):
            plain.get_submodule(name).weight.data = layer.raised(torch.float32)
        elif hasattr(getattr(layer, "weight", None), "quant_state"):
            from bitsandbytes.functional import dequantize_4bit

            plain.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return transformer, plain


def losses_and_gradients(transformer, kind, checkpointing=False):
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    lora = add_lora(transformer, LoRAOptions("attention+mlp", rank=2, kind=kind))
    torch.manual_seed(0)
    for parameter in lora.named_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    with FluxTraining(transformer) as training:
        training.train(checkpointing)
        losses = training(batch([], 2))
        losses.sum().backward()
    return losses.detach(), {name: parameter.grad for name, parameter in lora.named_parameters().items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("storage", "kind"), [("fp8", "lora"), ("fp8", "lokr"), ("nf4", "lora")])
def test_gradients_of_adapters_are_those_of_a_base_that_was_raised_before(storage, kind, checkpointing):
    transformer, plain = stored(storage)
    losses, gradients = losses_and_gradients(transformer, kind, checkpointing)
    expected, others = losses_and_gradients(plain, kind)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert all(bool(gradient.any()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("storage", "most"), [("fp8", 0.35), ("nf4", 0.3)])
def test_the_blocks_take_less_and_stand_for_nearly_the_same_weights(storage, most):
    transformer, plain = stored(storage)
    before = transformer_for(storage)
    taken = sum(stored_bytes(each) for each in transformer.transformer_blocks[0].parameters())
    assert taken < most * sum(each.nbytes for each in before.transformer_blocks[0].parameters())
    planned = planned_bytes(before, storage, torch.float32)
    # Layers of a few rows have relatively large scales and tables.
    assert planned == pytest.approx(sum(stored_bytes(each) for each in transformer.parameters()), rel=0.25)
    error = 0.04 if storage == "fp8" else 0.12
    for name, layer in before.named_modules():
        if type(layer) is torch.nn.Linear:
            other = plain.get_submodule(name).weight
            assert float((other - layer.weight).norm()) <= error * float(layer.weight.norm())
    assert torch.equal(plain.x_embedder.weight, before.x_embedder.weight)


def test_a_row_of_zeros_and_a_row_of_large_numbers_are_kept():
    layer = torch.nn.Linear(4, 2).requires_grad_(False)
    large = torch.tensor([1e4, -5e3, 0.0, 2.5e3])
    layer.weight[0], layer.weight[1] = 0.0, large
    raised = FP8Linear(layer).raised(torch.float32)
    assert not raised[0].any()
    torch.testing.assert_close(raised[1], large, rtol=0.07, atol=0.0)


def test_kinds_that_peft_cannot_train_on_these_weights_are_refused():
    transformer, _ = stored("fp8")
    with pytest.raises(ValueError, match="'dora' computes with the lengths .* 8 bits"):
        add_lora(transformer, LoRAOptions("attention", rank=2, kind="dora"))
    transformer, _ = stored("nf4")
    with pytest.raises(ValueError, match="'lokr' needs weights of their own shape, but these .* are packed: .*to_q"):
        add_lora(transformer, LoRAOptions("attention", rank=2, kind="lokr"))


def test_a_base_that_is_trained_is_not_stored_in_fewer_bits():
    with pytest.raises(ValueError, match="only while all of it is frozen, but `.*` is trained"):
        store_frozen(tiny_transformer().requires_grad_(True), "fp8")
    with pytest.raises(ValueError, match="'fp9' is not a known storage; did you mean 'fp8'"):
        store_frozen(tiny_transformer().requires_grad_(False), "fp9")


def test_layers_that_bitsandbytes_would_read_wrongly_are_refused():
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    with pytest.raises(ValueError, match="blocks of 64, but `.*` has 32 inputs"):
        store_frozen(tiny_transformer().requires_grad_(False), "nf4")
