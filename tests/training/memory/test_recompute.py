"""Blocks that run again, under every condition: gradients are those of blocks that run once, bit for bit."""

from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.conditions import CASES, METHODS
from benchmarks.support.tiny.lora_encoder import tiny_lora
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.offload.disk.stream import stream_of
from diffusers_flux_ext.offload.disk.streaming import stop_disk_streaming
from diffusers_flux_ext.testing import seeded, tiny_pipeline, tiny_transformer
from diffusers_flux_ext.training import FluxTraining
from diffusers_flux_ext.training.checkpointing import checkpoint_blocks
from diffusers_flux_ext.training.config.train_section import FusionSection
from diffusers_flux_ext.training.run.fusion import add_fusion
from diffusers_flux_ext.training.streaming import stream_blocks
from diffusers_flux_ext.training.trained import LoRAOptions, add_lora
from tests.fixtures.trained import shake
from tests.training.samples import bare, batch, encode


TRAINED = tuple(name for name in METHODS if name != "inpaint")
TOGETHER = ("entities", "controlnet", "ip-adapter", "references")


@cache
def transformer_with_lora(channels):
    transformer = tiny_transformer(0, in_channels=64 + channels, out_channels=64).requires_grad_(False)
    lora = add_lora(transformer, LoRAOptions("attention", rank=1))
    shake(lora)
    return transformer, list(lora.named_parameters().values())


def gradients(transformer, trained, names, given, every=0, offload=False, streamed=False):
    """The losses, and the gradients of what is trained and of the conditions' modules."""
    checkpoint_blocks(transformer, every, offload)
    if streamed:
        stream_blocks(transformer, torch.device("cpu"), 0)
    with FluxTraining(transformer, [bare(name) for name in names]) as training:
        modules = list(training.condition_modules.parameters())
        before = [parameter.requires_grad for parameter in modules]
        try:
            training.train()
            training.condition_modules.eval()
            for parameter in modules:
                parameter.requires_grad_(True)
            losses = training(given)
            found = torch.autograd.grad(losses.sum(), [*trained, *modules], allow_unused=True)
        finally:
            for parameter, given_before in zip(modules, before, strict=True):
                parameter.requires_grad_(given_before)
            checkpoint_blocks(transformer, 0)
            if stream_of(transformer) is not None:
                stop_disk_streaming(transformer)
    return [losses.detach(), *found]


WAYS = {
    "all": {"every": 1},
    "every second one": {"every": 2},
    "inputs offloaded": {"every": 1, "offload": True},
    "streamed": {"every": 1, "streamed": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("names", [*((name,) for name in TRAINED), TOGETHER], ids=" ".join)
def test_gradients_are_those_of_blocks_that_run_once(names):
    compare(*transformer_with_lora(max(CASES[name].channels for name in names)), names, batch(encode(*names)))


def test_gradients_of_gates_in_hooks_are_those_of_blocks_that_run_once(tmp_path):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.transformer.requires_grad_(False)
    for seed in range(2):
        save_file(tiny_lora(seed), tmp_path / f"{seed}.safetensors")
    fusion = add_fusion(
        pipe, FusionSection(loras=[str(tmp_path / f"{seed}.safetensors") for seed in range(2)]), seed=0
    )
    gates = list(fusion.module.requires_grad_(True).parameters())
    with torch.no_grad():
        for number, gate in enumerate(gates):
            gate.normal_(generator=seeded(number))
    compare(pipe.transformer, gates, (), batch([]))


def compare(transformer, trained, names, given):
    expected = gradients(transformer, trained, names, given)
    assert all(bool(each.any()) for each in expected[1 : 1 + len(trained)])
    for way, options in WAYS.items():
        found = gradients(transformer, trained, names, given, **options)
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None), way
            assert one is None or torch.equal(one, other), way
