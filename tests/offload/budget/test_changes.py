"""A VRAM budget stays true: LoRAs come and go, calls grow, models move, caches run, blocks lie on disk."""

import gc
import weakref

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks import FirstBlockCacheConfig
from PIL import Image

from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from benchmarks.support.tiny.redux import patch_embeds, tiny_redux_embedder
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    ReduxImages,
    ReferenceImages,
    VRAMBudgetError,
    apply_vram_plan,
    attach_conditions,
    disable_lora_fusion,
    disable_vram_budget,
    enable_lora_fusion,
    load_lora,
    memory_report,
    plan_vram,
)
from diffusers_flux_ext._compat import vram_budget_of
from diffusers_flux_ext.offload.budget.demand import workload_of
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from tests.fixtures.vram import BUDGETS, GIB, SIZES, WIDE, budget, draw, pipeline


pytestmark = pytest.mark.usefixtures("tiny_vram_numbers")


def lora(seed=0, rank=2):
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((rank, 64), (64, rank)))
    key = "transformer.single_transformer_blocks.1.attn.to_q"
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


@pytest.mark.parametrize(
    "name, pipeline_class",
    [("partly", FluxConditionedPipeline), ("partly", FluxPipeline), ("leaves", FluxPipeline)],
)
def test_loras_come_and_go_under_a_budget(name, pipeline_class, expected):
    plain = pipeline(pipeline_class)
    plain.load_lora_weights(lora(), adapter_name="a")
    with_lora = draw(plain)
    assert not torch.equal(with_lora, expected)
    pipe = pipeline(pipeline_class)
    found = budget(pipe, name)
    assert torch.equal(draw(pipe), expected)
    pipe.load_lora_weights(lora(), adapter_name="a")
    assert torch.equal(draw(pipe), with_lora)
    assert_kept(found)
    plain.load_lora_weights(lora(1), adapter_name="a", hotswap=True)
    pipe.load_lora_weights(lora(1), adapter_name="a", hotswap=True)
    swapped = draw(plain)
    assert torch.equal(draw(pipe), swapped)
    assert not torch.equal(swapped, with_lora)
    plain.fuse_lora()
    pipe.fuse_lora()
    assert torch.equal(draw(pipe), draw(plain))
    plain.unfuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), expected, atol=1e-5, rtol=0)
    assert_kept(found)


def assert_kept(found):
    """The hooks are those of the plan: one per streamed block, and none on those that stay."""
    plan = found.plan.component("transformer")
    if plan.level == "leaves":
        return
    for name in (*plan.resident, *plan.streamed):
        block = found.modules["transformer"].get_submodule(name)
        hooks = getattr(getattr(block, "_diffusers_hook", None), "hooks", {})
        assert ("group_offloading" in hooks) == (name in plan.streamed)
    assert found.plan.peak_gib <= found.plan.budget_gib


def test_the_plan_counts_the_loras_weights():
    pipe = pipeline()
    found = budget(pipe)
    before = found.plan.component("transformer").total
    pipe.load_lora_weights(lora(rank=8))
    assert found.plan.component("transformer").total == before + 2 * 8 * 64 * 4


@pytest.mark.parametrize("first", ["gates", "budget"])
def test_lora_fusion_and_redux_under_a_budget(first):
    redux = ReduxImages(image_embeds=patch_embeds(), region=(0.0, 0.0, 0.5, 1.0), image_embedder=tiny_redux_embedder())

    def with_loras():
        pipe = tiny_pipeline(FluxConditionedPipeline)
        for seed, name in enumerate(("cat", "dog")):
            load_lora(pipe, small_lora(seed), name)
        return pipe

    pipe = with_loras()
    enable_lora_fusion(pipe, tiny_fusion())
    gated = draw(pipe, conditions=[redux])
    pipe, added = with_loras(), draw(with_loras(), conditions=[redux])
    if first == "gates":
        enable_lora_fusion(pipe, tiny_fusion())
    # The size of the embedder's activations is not known, so that 64 MiB are assumed.
    found = apply_vram_plan(pipe, plan_vram(pipe, 0.09, **SIZES, conditions=[redux]), "cpu")
    assert found.plan.workload.text_tokens == 16 + 9
    if first == "budget":
        enable_lora_fusion(pipe, tiny_fusion())
    assert torch.equal(draw(pipe, conditions=[redux]), gated)
    disable_lora_fusion(pipe)
    assert torch.equal(draw(pipe, conditions=[redux]), added)


def test_gates_over_loras_are_counted():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    load_lora(pipe, small_lora(), "cat")
    before = plan_vram(pipe, 1, **SIZES).component("transformer").activations
    enable_lora_fusion(pipe, tiny_fusion())
    assert plan_vram(pipe, 1, **SIZES).component("transformer").activations > before


@pytest.mark.parametrize(
    "images, options, tokens",
    [
        (torch.rand(1, 3, 32, 48), {}, 4096),
        (torch.rand(1, 3, 32, 48), {"preferred_size": False}, 6),
        ([torch.rand(3, 32, 48), Image.new("RGB", (70, 40))], {"preferred_size": False}, 6 + 8),
        (torch.rand(1, 16, 8, 4), {"preferred_size": False}, 8),
        ([torch.rand(3, 32, 48)] * 2, {"preferred_size": False, "scale": [0, 1], "max_area": 1024}, 4),
    ],
)
def test_references_are_counted_in_their_size(images, options, tokens):
    workload = workload_of([ReferenceImages(images, **options)], 32, 48, 1, 16)
    assert workload.reference_tokens == pytest.approx(tokens, rel=0.03)


def test_a_plan_does_not_keep_the_models_alive():
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0, num_single_layers=2))
    plan_vram(pipe, 1, **SIZES)
    transformer = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert transformer() is None


def test_to_moves_nothing_that_the_plan_places(expected):
    pipe = pipeline()
    budget(pipe)
    pipe.to("cpu")
    assert torch.equal(draw(pipe), expected)
    assert pipe._execution_device.type == "cpu"


@pytest.mark.parametrize("pipeline_class", [FluxConditionedPipeline, FluxPipeline])
def test_a_larger_call_is_planned_again(pipeline_class, monkeypatch):
    pipe = pipeline(pipeline_class)
    large = {"height": 64, "width": 64, "num_images_per_prompt": 2}
    without = draw(pipe, **large)
    found = budget(pipe, "whole")
    messages = []
    monkeypatch.setattr("diffusers_flux_ext.offload.budget.budget.logger.warning", messages.append)
    assert torch.equal(draw(pipe, **large), without)
    assert "planning again" in messages[0]
    assert (found.plan.workload.batch, found.plan.workload.image_tokens) == (2, 16)
    assert torch.equal(draw(pipe, **large), without)
    assert len(messages) == 1


def test_a_larger_call_that_cannot_fit_is_refused():
    pipe = pipeline()
    budget(pipe, "streamed")
    with pytest.raises(VRAMBudgetError, match="too small"):
        draw(pipe, height=256, width=256)


@pytest.mark.parametrize("first", ["cache", "budget"])
def test_caches_live_before_and_after_a_budget(first):
    """diffusers' removal of a hook below a cache leaves the cache dead; see `remove_hook`."""
    plain = pipeline()
    plain.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    cached = draw(plain, num_inference_steps=3)
    pipe = pipeline()
    if first == "cache":
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    budget(pipe)
    if first == "budget":
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    assert torch.equal(draw(pipe, num_inference_steps=3), cached)
    pipe.load_lora_weights(lora())
    pipe.unload_lora_weights()
    calls = []
    pipe.transformer.transformer_blocks[2].attn.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.equal(draw(pipe, num_inference_steps=3), cached)
    assert len(calls) == 1


def test_another_pipeline_with_the_same_models_keeps_the_budget(expected):
    pipe = pipeline()
    found = budget(pipe)
    other = pipe.to_pipeline(FluxPipeline)
    other.set_progress_bar_config(disable=True)
    assert vram_budget_of(other) is found
    assert torch.equal(draw(other), expected)


def test_other_offloading_is_refused():
    pipe = pipeline()
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    plan = plan_vram(pipe, BUDGETS["partly"] / GIB, **SIZES)
    with pytest.raises(ValueError, match="'transformer' is offloaded by group offloading already"):
        apply_vram_plan(pipe, plan, "cpu")
    under = pipeline()
    budget(under)
    with pytest.raises(ValueError, match="group offloading"):
        under.enable_model_cpu_offload(device="cpu")


def test_saving_under_a_budget_saves_the_weights(tmp_path, expected):
    pipe = pipeline()
    budget(pipe)
    draw(pipe)
    pipe.save_pretrained(tmp_path)
    again = FluxConditionedPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), expected)


def test_the_report_says_that_nothing_was_measured():
    pipe = pipeline()
    with pytest.raises(ValueError, match="no VRAM budget"):
        memory_report(pipe)
    found = budget(pipe)
    draw(pipe)
    report = memory_report(pipe)
    assert "Predicted only" in str(report)
    assert report.measured == {}
    assert report.predicted["loop"] == found.plan.phase("loop").peak / GIB


# ---- stored in fewer bits, and on disk ------------------------------------------------------------------------------


def test_blocks_are_stored_in_eight_bits_the_modulation_included(expected):
    pipe = pipeline()
    plan = pipe.enable_vram_budget(BUDGETS["partly"] / GIB, "cpu", storage_dtype=torch.float8_e4m3fn, **SIZES)
    block = pipe.transformer.transformer_blocks[0]
    assert block.norm1.linear.weight.dtype == torch.float8_e4m3fn
    assert block.attn.norm_q.weight.dtype == torch.float32
    assert pipe.transformer.x_embedder.weight.dtype == torch.float32
    stored = sum(each.numel() * each.element_size() for each in block.parameters())
    sizes = {**plan.component("transformer").resident, **plan.component("transformer").streamed}
    assert sizes["transformer_blocks.0"] == stored
    images = draw(pipe)
    assert torch.isfinite(images).all()
    assert 0 < (images - expected).abs().mean() < 0.05
    assert torch.equal(draw(pipe), images)
    pipe.load_lora_weights(lora())
    assert torch.isfinite(draw(pipe)).all()


def assert_same(found, expected):
    """Matrices read from a file lie elsewhere in memory, on which the last bit of a product may depend."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# With what is outside of blocks, and the buffers: less than the blocks take.
RAM = 3e6


def disk_budget(pipe, folder, name="partly", ram=RAM):
    return budget(pipe, name, ram_budget_gib=ram / GIB, offload_dir=folder)


@pytest.mark.parametrize("name", ["streamed", "partly"])
def test_blocks_on_disk(tmp_path, name, expected):
    pipe = pipeline()
    found = disk_budget(pipe, tmp_path, name)
    assert found.plan.host_gib <= RAM / GIB
    on_disk = found.plan.component("transformer").on_disk
    assert on_disk
    for _ in range(2):
        assert_same(draw(pipe), expected)
    # Writing goes to the folder of each model, under names that come from the contents.
    assert {path.parent.name for path in tmp_path.rglob("*.safetensors")} <= set(found.modules)
    assert not list(tmp_path.rglob("*.part"))
    disable_vram_budget(pipe)
    assert_same(draw(pipe), expected)


def test_files_of_other_weights_are_not_used(tmp_path, expected):
    disk_budget(pipeline(), tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    other = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(7, **WIDE))
    without = draw(other)
    assert not torch.equal(without, expected)
    disk_budget(other, tmp_path)
    assert_same(draw(other), without)
    again = pipeline()
    disk_budget(again, tmp_path)
    assert_same(draw(again), expected)
    # The same weights are not written twice.
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_saving_from_disk_saves_the_weights(tmp_path, expected):
    pipe = pipeline()
    weights = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    found = disk_budget(pipe, tmp_path / "offload")
    assert found.plan.component("transformer").on_disk
    draw(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    again = FluxConditionedPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    saved = again.transformer.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[key], weights[key]) for key in weights)
    assert_same(draw(again), expected)


def test_loras_on_weights_that_are_on_disk(tmp_path, expected):
    plain, pipe = pipeline(), pipeline()
    disk_budget(pipe, tmp_path)
    for each in (plain, pipe):
        each.load_lora_weights(lora())
    assert_same(draw(pipe), draw(plain))
    pipe.unload_lora_weights()
    assert_same(draw(pipe), expected)


def test_conditions_attached_to_a_stock_pipeline():
    pipe, references = pipeline(FluxPipeline), ReferenceImages([Image.new("RGB", (48, 32))], preferred_size=False)
    before = draw(pipe)
    with attach_conditions(pipe, references):
        expected = draw(pipe)
        budget(pipe, "streamed")
        assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), before)
    assert not torch.equal(expected, before)
