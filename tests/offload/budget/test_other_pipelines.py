"""A VRAM budget beside what else changes a pipeline: other pipelines, LoRAs with hooks, casting, failed calls."""

import logging

import pytest
import torch
from diffusers import FluxPipeline

from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from benchmarks.support.tiny.nexus_gen import image_embeds, tiny_adapter
from benchmarks.support.tiny.redux import patch_embeds, tiny_redux_embedder
from benchmarks.support.tiny.step1x import edited, instruction_embeds, tiny_connector
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    FluxNexusGenPipeline,
    FluxStep1XEditPipeline,
    ReduxImages,
    VRAMBudgetError,
    apply_tea_cache,
    apply_vram_plan,
    disable_vram_budget,
    disk_streaming_stats,
    enable_lora_fusion,
    load_lora,
    load_timestep_lora,
    plan_vram,
    stop_disk_streaming,
    stream_from_disk,
    unload_lora,
    vram_plan_from_diffsynth,
)
from diffusers_flux_ext._compat import vram_budget_of
from diffusers_flux_ext.offload.blocks import streamable_blocks
from diffusers_flux_ext.offload.budget import apply
from diffusers_flux_ext.offload.budget import estimate as vram_estimate
from diffusers_flux_ext.offload.budget import placement as vram_placement
from diffusers_flux_ext.offload.budget import planner as vram
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline, tiny_transformer


GIB = 2**30
SIZES = {"height": 32, "width": 48, "max_sequence_length": 16}
STREAMED = 0.9e6


@pytest.fixture(autouse=True)
def _tiny_numbers(monkeypatch):
    monkeypatch.setattr(vram, "MARGIN_BYTES", 0)
    monkeypatch.setattr(vram_placement, "SMALL", 2**14)
    monkeypatch.setattr(vram_estimate, "ASSUMED_BYTES", 2**12)


def pipeline(pipeline_class=FluxConditionedPipeline, **components):
    return tiny_pipeline(pipeline_class, **components)


def draw(pipe, **kwargs):
    return pipe(**call_kwargs(**{"num_inference_steps": 1, **kwargs})).images


def budget(pipe, size=STREAMED, **kwargs):
    return apply_vram_plan(pipe, plan_vram(pipe, size / GIB, **{**SIZES, **kwargs}), "cpu")


def left_out(found):
    """Weights that run while they are not on the card, or streamed ones outside of their block's turn."""
    missing, turns = set(), set()

    def check(module, part, name):
        placed = found.parts[part]
        here = name in (turns if name in placed.plan.streamed else placed.loaded)
        if not next(module.parameters(recurse=False)).is_meta and placed.groups and not here:
            missing.add((part, name))

    for part, placed in found.parts.items():
        blocks = streamable_blocks(placed.module)
        for name, block in blocks.items():
            block.register_forward_pre_hook(lambda *_, name=name: turns.add(name))
            block.register_forward_hook(lambda *_, name=name: turns.discard(name))
        for path, module in placed.module.named_modules():
            name = next((block for block in blocks if f"{path}.".startswith(f"{block}.")), "")
            # Hooks of a whole model run before the budget's.
            if path and any(True for _ in module.parameters(recurse=False)):
                module.register_forward_pre_hook(lambda module, _, part=part, name=name: check(module, part, name))
    return missing


@pytest.mark.parametrize("first", [True, False])
def test_loras_with_hooks_of_their_own(first):
    def run(under_budget):
        pipe = pipeline()
        if under_budget and first:
            budget(pipe)
        load_timestep_lora(pipe, tiny_timestep_lora(), "timed")
        load_lora(pipe, small_lora(1), "a", 0.8)
        enable_lora_fusion(pipe, tiny_fusion(), ["a"])
        if under_budget and not first:
            budget(pipe)
        both = draw(pipe)
        unload_lora(pipe, "timed")
        return both, draw(pipe)

    for found, expected in zip(run(True), run(False)):
        assert torch.equal(found, expected)


def test_a_data_type_is_taken_on():
    pipe, plain = pipeline(), pipeline().to(torch.bfloat16)
    found = budget(pipe)
    before = found.plan.component("transformer").total
    assert pipe.to("cpu", torch.bfloat16) is pipe
    assert 2 * found.plan.component("transformer").total == before
    assert torch.equal(draw(pipe), draw(plain))
    pipe.enable_vram_budget(1, "cpu", storage_dtype=torch.float8_e4m3fn, **SIZES)
    with pytest.raises(ValueError, match="8 bits"):
        pipe.to(torch.float32)


def test_a_budget_that_fails_leaves_the_one_before():
    pipe = pipeline()
    expected = draw(pipe)
    found = budget(pipe)
    plan = found.plan.to_dict()
    assert plan_vram(pipe, STREAMED / GIB, **SIZES).to_dict() == plan
    with pytest.raises(VRAMBudgetError):
        pipe.enable_vram_budget(1e-6, "cpu")
    assert vram_budget_of(pipe) is found
    assert torch.equal(draw(pipe), expected)


def test_a_plan_for_other_weights_is_refused():
    pipe = pipeline()
    plan = plan_vram(pipeline(transformer=tiny_transformer(num_layers=4)), 1, **SIZES)
    with pytest.raises(ValueError, match="'transformer'"):
        apply_vram_plan(pipe, plan, "cpu")
    plan = plan_vram(pipe, 1, **SIZES)
    load_lora(pipe, small_lora(1), "a")
    with pytest.raises(ValueError, match="'transformer'"):
        apply_vram_plan(pipe, plan, "cpu")


def test_two_pipelines_under_one_budget(caplog):
    one = pipeline()
    other = quiet(FluxEliGenPipeline.from_pipe(one, transformer=tiny_transformer(9)))
    expected = draw(one), draw(other)
    budget(one)
    with caplog.at_level(logging.WARNING):
        logger = apply.logger
        logger.addHandler(caplog.handler)
        budget(other)
        logger.removeHandler(caplog.handler)
    assert "['transformer'] of another pipeline no longer have a budget" in caplog.text
    models = {name: part for name, part in one.components.items() if isinstance(part, torch.nn.Module)}
    found = budget({**models, "transformer_2": other.transformer})
    missing = left_out(found)
    for _ in range(2):
        assert torch.equal(draw(one), expected[0])
        assert torch.equal(draw(other), expected[1])
    assert not missing
    disable_vram_budget(one)
    assert vram_budget_of(other) is None


def test_a_failed_call_leaves_the_budget():
    pipe = pipeline()
    expected = draw(pipe)
    missing = left_out(budget(pipe))
    failing = pipe.transformer.single_transformer_blocks[1].norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(pipe)
    failing.remove()
    assert torch.equal(draw(pipe), expected)
    assert not missing


def test_planning_again_leaves_no_hook_behind():
    pipe = pipeline()
    expected = draw(pipe)
    found = budget(pipe, 4.3e5)
    assert found.plan.component("vae").level == "leaves"
    found.rebuild()
    assert torch.equal(draw(pipe), expected)
    disable_vram_budget(pipe)
    assert not [part for part in pipe.vae.modules() if "forward" in part.__dict__ or hasattr(part, "_diffusers_hook")]
    budget(pipe)
    assert torch.equal(draw(pipe), expected)


def test_the_connector_stays_in_the_loop():
    pipe = pipeline(
        FluxStep1XEditPipeline,
        transformer=tiny_transformer(0, guidance_embeds=False),
        connector=tiny_connector(),
    )
    inputs = {"prompt": None, "image": edited(), "instruction_embeds": instruction_embeds(0), "num_inference_steps": 2}
    inputs |= {"true_cfg_scale": 1.0}
    expected = draw(pipe, **inputs)
    found = budget(pipe, 4e8)
    connector = found.plan.component("connector")
    assert (connector.phase, connector.streamed) == ("loop", {})
    assert (found.plan.workload.text_tokens, found.plan.workload.image_tokens) == (640, 12)
    missing, phases, switch = left_out(found), [], found._switch
    found._switch = lambda phase: (phases.append(phase), switch(phase))
    assert torch.equal(draw(pipe, **inputs), expected)
    assert phases == ["vae", "loop", "vae"]
    assert not missing


def test_adapters_of_nexus_gen_are_phases_of_their_own():
    pipe = pipeline(FluxNexusGenPipeline, generation_adapter=tiny_adapter())
    inputs = {"image_embeds": image_embeds(), "decoder": "generation"}
    expected = draw(pipe, **inputs)
    found = budget(pipe, 4e6)
    missing = left_out(found)
    assert found.plan.component("generation_adapter").phase == "generation_adapter"
    assert torch.equal(draw(pipe, **inputs), expected)
    assert not missing


def test_pictures_of_redux_are_counted():
    condition = ReduxImages(image_embeds=patch_embeds(0, 2, 9, 16), image_embedder=tiny_redux_embedder())
    plan = plan_vram(pipeline(FluxPipeline), 1, conditions=[condition], **SIZES)
    assert plan.workload.text_tokens == 16 + 2 * 9
    # ControlNets see them, too.
    assert (plan.workload.prompt_tokens, plan.workload.appended_tokens) == (16, 18)
    assert plan.component("ReduxImages.image_embedder").phase == "ReduxImages.image_embedder"


@pytest.mark.parametrize("budget_first", [True, False])
def test_streaming_from_disk_and_a_budget_in_both_orders(tmp_path, budget_first):
    pipe = pipeline()
    expected = draw(pipe)
    if budget_first:
        found = budget(pipe)
    stream_from_disk(pipe.transformer, offload_dir=tmp_path)
    if not budget_first:
        found = budget(pipe)
    assert vram_budget_of(pipe) is found
    assert found.plan.component("transformer").from_disk
    for _ in range(2):
        assert torch.equal(draw(pipe), expected)
    assert disk_streaming_stats(pipe.transformer).blocks_read > 0
    if budget_first:
        stop_disk_streaming(pipe.transformer)
        assert not found.plan.component("transformer").from_disk
    else:
        disable_vram_budget(pipe)
        # What streamed before the budget streams after it.
        before = disk_streaming_stats(pipe.transformer).blocks_read
        assert torch.equal(draw(pipe), expected)
        assert disk_streaming_stats(pipe.transformer).blocks_read > before
        stop_disk_streaming(pipe.transformer)
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"storage_dtype": "fp8"}, TypeError),
        ({"conditions": ["entity"]}, TypeError),
        ({"budget_gib": float("inf")}, ValueError),
        ({"offload_dir": "folder"}, ValueError),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        plan_vram(pipeline(), **{**SIZES, **arguments})


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda pipe: apply_tea_cache(pipe.transformer, 0.2), TypeError, "TeaCacheConfig"),
        (lambda pipe: vram_plan_from_diffsynth([], 8), TypeError, "vram_config"),
        (lambda pipe: stream_from_disk(pipe, offload_dir="x"), TypeError, "pipe.transformer"),
        (lambda pipe: stream_from_disk(pipe.transformer, offload_dir="x", read_ahead=1.5), ValueError, "read_ahead"),
        (lambda pipe: stream_from_disk(pipe.vae, offload_dir="x", ram_budget_gib=-1.0), ValueError, "ram_budget"),
        (lambda pipe: stream_from_disk(pipe.vae, offload_dir="x", storage_dtype=torch.int8), ValueError, "storage"),
    ],
)
def test_wrong_kinds_are_refused_before_work(call, error, message):
    pipe = pipeline()
    with pytest.raises(error, match=message):
        call(pipe)
    assert not pipe.transformer.is_cache_enabled
