"""VRAM plans of quantised models: bytes as they are stored, and what no budget can hold."""

import pytest
import torch

from benchmarks.support.quantised.kinds import KINDS, pipeline_of, quantised_transformer, unpacked_transformer
from benchmarks.support.quantised.uses import CALL
from diffusers_flux_ext import apply_vram_plan, plan_vram, stream_from_disk
from diffusers_flux_ext.checkpoints.packed_weights import move_in_place, packings, stored_bytes
from diffusers_flux_ext.offload.budget.estimate import Workload, activation_bytes


def needs(kind):
    pytest.importorskip(KINDS[kind][0], reason=f"{KINDS[kind][0]} is not installed")
    return kind


def allocated(model):
    """Bytes of all storages that a model holds on to, found through the attributes of its tensors."""
    storages, seen, pending = {}, set(), [*model.parameters(), *model.buffers()]
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        inner = [*vars(found).values()] if hasattr(found, "__dict__") else []
        pending += [each for each in inner if isinstance(each, torch.Tensor) or "QuantState" in type(each).__name__]
        if isinstance(found, torch.Tensor) and not hasattr(found, "__tensor_flatten__"):
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("kind", KINDS)
def test_plans_count_stored_bytes(kind):
    model = quantised_transformer(needs(kind))
    planned = plan_vram(pipeline_of(model), 8, **CALL).component("transformer").total
    assert planned == pytest.approx(allocated(model), rel=0.02)
    plain = plan_vram(pipeline_of(unpacked_transformer(kind)), 8, **CALL).component("transformer").total
    assert planned < 0.6 * plain


@pytest.mark.parametrize("kind", ["torchao int8", "quanto int8", "bitsandbytes nf4"])
def test_activations_are_those_of_the_unpacked_model(kind):
    call = Workload(height=32, width=48, text_tokens=16, prompt_tokens=16)
    quantised, plain = quantised_transformer(needs(kind)), unpacked_transformer(kind)
    assert activation_bytes(quantised, call) == activation_bytes(plain, call)


@pytest.mark.parametrize("kind", ["quanto int8", "bitsandbytes nf4", "bitsandbytes int8"])
def test_what_cannot_be_moved_is_refused(kind):
    pipe = pipeline_of(quantised_transformer(needs(kind)))
    plan = plan_vram(pipe, 8, **CALL)
    with pytest.raises(ValueError, match="'transformer' is quantised by .*do not move in parts.*GGUF or by torchao"):
        apply_vram_plan(pipe, plan, "cpu")


@pytest.mark.parametrize("kind", ["GGUF Q8_0", "torchao int8"])
def test_eight_bits_and_the_disk_are_refused(kind, tmp_path):
    pipe = pipeline_of(quantised_transformer(needs(kind)))
    with pytest.raises(ValueError, match="cannot be stored in torch.float8_e4m3fn as well. Leave 'transformer' out"):
        plan_vram(pipe, 8, storage_dtype=torch.float8_e4m3fn, **CALL)
    with pytest.raises(ValueError, match="cannot go to disk for `ram_budget_gib`"):
        plan_vram(pipe, 8, ram_budget_gib=1, offload_dir=tmp_path, **CALL)
    with pytest.raises(ValueError, match="cannot be streamed from disk. Put it under a VRAM budget"):
        stream_from_disk(pipe.transformer, offload_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_packed_weights_move_with_what_is_inside():
    weight = quantised_transformer(needs("torchao int8")).proj_out.weight
    model = torch.nn.Linear(1, 1)
    model.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    before, address = stored_bytes(model.weight), id(model.weight)
    move_in_place(model.weight, torch.device("meta"))
    assert {model.weight.qdata.device.type, model.weight.scale.device.type} == {"meta"}
    assert (id(model.weight), stored_bytes(model.weight)) == (address, before)
    assert packings(model) == ("torchao",)
