"""A VRAM budget: plans that fit, weights that are where the plan says, and pictures that do not change."""

import gc
import json
import weakref

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks import FirstBlockCacheConfig
from PIL import Image

from diffusers_flux_ext import (
    ControlNetImage,
    FluxConditionedPipeline,
    ReduxImages,
    ReferenceImages,
    VRAMBudgetError,
    apply_vram_plan,
    disable_lora_fusion,
    disable_vram_budget,
    enable_lora_fusion,
    load_lora,
    memory_report,
    plan_vram,
)
from diffusers_flux_ext._compat import vram_budget_of
from diffusers_flux_ext.hooks import vram, vram_placement
from diffusers_flux_ext.hooks.vram_needs import workload_of
from tests.fixtures.controlnet import PICTURE, tiny_controlnet
from tests.fixtures.lora_fusion import small_lora, tiny_fusion
from tests.fixtures.redux import patch_embeds, tiny_redux_embedder
from tests.fixtures.tiny import call_kwargs, tiny_pipeline, tiny_transformer


GIB = 2**30
WIDE = {"num_layers": 4, "num_single_layers": 6, "num_attention_heads": 4}
SIZES = {"height": 32, "width": 48, "max_sequence_length": 16}
# Bytes with which the transformer below streams, all of it or in part, or is whole.
BUDGETS = {"leaves": 0.8e6, "one": 1.4e6, "streamed": 2e6, "partly": 3.2e6, "whole": 8e6}


@pytest.fixture(autouse=True)
def _tiny_numbers(monkeypatch):
    """No margin and no model too small to stream: these are tiny."""
    monkeypatch.setattr(vram, "MARGIN_BYTES", 0)
    monkeypatch.setattr(vram_placement, "SMALL", 2**14)


def pipeline(pipeline_class=FluxConditionedPipeline, **sizes):
    return tiny_pipeline(pipeline_class, transformer=tiny_transformer(**{**WIDE, **sizes}))


def draw(pipe, **kwargs):
    return pipe(**call_kwargs(**{"num_inference_steps": 1, **kwargs})).images


@pytest.fixture(scope="module")
def expected():
    return draw(pipeline())


def budget(pipe, name="partly", **kwargs):
    plan = plan_vram(pipe, BUDGETS[name] / GIB, **{**SIZES, **kwargs})
    return apply_vram_plan(pipe, plan, "cpu")


def hooks_of(pipe):
    modules = [
        part for each in pipe.components.values() if isinstance(each, torch.nn.Module) for part in each.modules()
    ]
    return [name for part in modules for name in getattr(getattr(part, "_diffusers_hook", None), "hooks", {})]


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_more_budget_streams_less_and_every_peak_fits():
    pipe, streamed, resident = pipeline(), [], []
    for kib in range(600, 5000, 400):
        plan = plan_vram(pipe, kib * 1024 / GIB, **SIZES)
        assert plan.peak_gib <= plan.budget_gib
        streamed.append(plan.streamed_gib)
        resident.append(len(plan.component("transformer").resident))
    assert streamed == sorted(streamed, reverse=True)
    assert streamed[0] > 0 == streamed[-1]
    assert len(set(resident)) > 5


def test_an_impossible_budget_names_the_smallest_that_works():
    pipe = pipeline()
    with pytest.raises(VRAMBudgetError, match="the smallest that works is .* a smaller picture") as error:
        plan_vram(pipe, 1e5 / GIB, **SIZES)
    # The message rounds up to hundredths of a GiB, which are coarse for a tiny model.
    assert 0 < error.value.smallest_gib <= 0.02
    assert plan_vram(pipe, error.value.smallest_gib, **SIZES).peak_gib <= error.value.smallest_gib


def test_the_smallest_budget_is_the_smallest_for_the_released_size():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
    models = {"transformer": model.to(torch.bfloat16)}
    with pytest.raises(VRAMBudgetError) as error:
        plan_vram(models, 0.1)
    smallest = error.value.smallest_gib
    assert plan_vram(models, smallest).component("transformer").level == "leaves"
    with pytest.raises(VRAMBudgetError):
        plan_vram(models, smallest - 0.03)
    # Stored in one byte, the blocks take half of it.
    stored = plan_vram(models, 8, storage_dtype=torch.float8_e4m3fn).component("transformer")
    plain = plan_vram(models, 8).component("transformer")
    assert (stored.total - stored.rest) / (plain.total - plain.rest) == pytest.approx(0.5, abs=0.01)
    # A larger picture, a larger batch and more text need more.
    peaks = [
        plan_vram(models, 8, **given).phase("loop").activations
        for given in ({}, {"height": 1536}, {"batch": 2}, {"added": [vram.Added(text_tokens=1024)]})
    ]
    assert all(peak > peaks[0] for peak in peaks[1:])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"budget_gib": 0}, "`budget_gib` is 0"),
        ({"budget_gib": "8"}, "`budget_gib` is '8'"),
        ({"height": 100}, "multiple of 16"),
        ({"batch": 1.5}, "whole number"),
        ({"ram_budget_gib": 4}, "needs `offload_dir`"),
        ({"storage_dtype": torch.float16}, "expected one of"),
        ({"storage_dtype": {"unet": torch.float8_e4m3fn}}, "names 'unet'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_vram(pipeline(), **{"budget_gib": 8, **SIZES, **arguments})


def test_a_plan_reads_as_a_table_and_as_json():
    plan = plan_vram(pipeline(), BUDGETS["partly"] / GIB, **SIZES)
    text = str(plan)
    transformer = plan.component("transformer")
    assert f"{len(transformer.resident)} blocks stay, {len(transformer.streamed)} stream" in text
    assert all(name in text for name in ("text_encoder_2", "loop", "vae", "peak GiB"))
    found = json.loads(json.dumps(plan.to_dict()))
    assert found["components"]["transformer"]["streamed"] == list(transformer.streamed)
    assert found["peak_gib"] == plan.peak_gib


# ---- what runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, pipeline_class",
    [*((name, FluxConditionedPipeline) for name in BUDGETS), ("partly", FluxPipeline), ("leaves", FluxPipeline)],
)
def test_pictures_do_not_change(name, pipeline_class, expected):
    pipe = pipeline(pipeline_class)
    found = budget(pipe, name)
    level = found.plan.component("transformer").level
    assert level == {"leaves": "leaves", "whole": "whole"}.get(name, "blocks")
    assert bool(found.plan.component("transformer").resident) == (name in ("partly", "whole"))
    for _ in range(2):
        assert torch.equal(draw(pipe), expected)
    disable_vram_budget(pipe)
    assert not hooks_of(pipe)
    assert torch.equal(draw(pipe), expected)


class Spy:
    """Writes down what comes to the card, what leaves it and what runs; holds what is there after each event."""

    def __init__(self, found, monkeypatch):
        self.events, self.on_card, self.sizes = [], {}, {}
        names = {
            id(group): (part.plan.name, name) for part in found.parts.values() for name, group in part.groups.items()
        }
        kind = type(next(iter(found.parts["transformer"].groups.values())))
        load, leave = kind.onload_, kind.offload_

        def onload(group):
            self.events.append(("onload", *names[id(group)]))
            self.on_card[names[id(group)]] = True
            load(group)

        def offload(group):
            self.events.append(("offload", *names[id(group)]))
            self.on_card.pop(names[id(group)], None)
            leave(group)

        monkeypatch.setattr(kind, "onload_", onload)
        monkeypatch.setattr(kind, "offload_", offload)
        for name in found.plan.component("transformer").streamed:
            block = found.modules["transformer"].get_submodule(name)
            inner = getattr(block, "norm1", getattr(block, "norm", None))
            inner.register_forward_pre_hook(lambda *_, name=name: self.ran(name))

    def ran(self, name):
        self.events.append(("run", "transformer", name))
        self.sizes.setdefault("loop", []).append(set(self.on_card))


def test_blocks_come_in_order_one_ahead_and_leave_after_their_turn(monkeypatch):
    pipe = pipeline()
    found = budget(pipe, "streamed")
    spy = Spy(found, monkeypatch)
    draw(pipe)
    names = list(found.plan.component("transformer").streamed)
    assert found.plan.component("transformer").prefetch
    assert names == [f"transformer_blocks.{i}" for i in range(4)] + [
        f"single_transformer_blocks.{i}" for i in range(6)
    ]
    blocks = [(kind, name) for kind, owner, name in spy.events if owner == "transformer" and name]
    wanted = [("onload", names[0])]
    for index, name in enumerate(names):
        wanted += [("onload", following) for following in names[index + 1 : index + 2]]
        wanted += [("run", name), ("offload", name)]
    assert blocks == wanted


@pytest.mark.parametrize("name", ["streamed", "partly"])
def test_nothing_is_on_the_card_that_the_plan_does_not_count(monkeypatch, name):
    pipe = pipeline()
    found = budget(pipe, name)
    spy = Spy(found, monkeypatch)
    for _ in range(2):
        draw(pipe)
    plan = found.plan.component("transformer")
    keeps = found.plan.phase("loop").keeps
    sizes = {"": plan.rest, **plan.resident, **plan.streamed}
    for there in spy.sizes["loop"]:
        mine = {block for owner, block in there if owner == "transformer"}
        assert mine >= {"", *plan.resident}
        assert sum(sizes[block] for block in mine - {"", *plan.resident}) <= plan.window
        assert {part for part in there if part[0] != "transformer"} <= keeps
    assert len(spy.sizes["loop"]) == 2 * len(plan.streamed)


def test_blocks_that_a_cache_skips_are_not_copied(monkeypatch):
    pipe = pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    found = budget(pipe, "streamed")
    spy = Spy(found, monkeypatch)
    draw(pipe, num_inference_steps=3)
    loads = [name for kind, owner, name in spy.events if (kind, owner) == ("onload", "transformer")]
    # Each step runs the first block, which has the second one copied; only the first step runs the others.
    blocks = list(found.plan.component("transformer").streamed)
    assert all(loads.count(name) == 1 for name in blocks[2:])
    # A prefetched block whose turn does not come leaves.
    assert len(found.parts["transformer"].loaded & found.plan.component("transformer").streamed.keys()) <= 2
    assert (
        sum(found.plan.component("transformer").streamed[name] for name in found.parts["transformer"].loaded if name)
        <= found.plan.component("transformer").window
    )


def test_a_conditions_module_is_planned_and_runs_in_the_loop():
    net = tiny_controlnet(5, "union")
    condition = ControlNetImage(net, PICTURE, mode="canny")
    pipe = pipeline(num_attention_heads=2)
    without = draw(pipe, conditions=[condition])
    budget(pipe, "leaves", conditions=[condition])
    found = vram_budget_of(pipe)
    plan = found.plan.component("ControlNetImage.controlnet")
    assert plan.phase == "loop"
    residuals = 3 * SIZES["height"] * SIZES["width"] // 256 * 32 * 4
    running = max((plan, found.plan.component("transformer")), key=lambda each: each.window + each.activations)
    assert found.plan.phase("loop").activations == running.activations + residuals
    assert torch.equal(draw(pipe, conditions=[condition]), without)
    disable_vram_budget(pipe)
    assert torch.equal(draw(pipe, conditions=[condition]), without)


# ---- it stays true --------------------------------------------------------------------------------------------------


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
    redux = ReduxImages(image_embeds=patch_embeds(), mask=(0.0, 0.0, 0.5, 1.0), image_embedder=tiny_redux_embedder())

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
        ([torch.rand(3, 32, 48)] * 2, {"preferred_size": False, "strengths": [0, 1], "max_area": 1024}, 4),
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
    monkeypatch.setattr("diffusers_flux_ext.hooks.vram_apply.logger.warning", messages.append)
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


def disk_budget(pipe, folder, name="partly", ram=1.6e6):
    return budget(pipe, name, ram_budget_gib=ram / GIB, offload_dir=folder)


@pytest.mark.parametrize("name", ["streamed", "partly"])
def test_blocks_on_disk(tmp_path, name, expected):
    pipe = pipeline()
    found = disk_budget(pipe, tmp_path, name)
    assert found.plan.host_gib <= 1.6e6 / GIB
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


def test_saving_from_disk_is_refused(tmp_path):
    pipe = pipeline()
    disk_budget(pipe, tmp_path)
    with pytest.raises(RuntimeError, match="disable_vram_budget"):
        pipe.transformer.save_pretrained(tmp_path / "saved")
    disable_vram_budget(pipe)
    pipe.transformer.save_pretrained(tmp_path / "saved")


def test_loras_on_weights_that_are_on_disk(tmp_path, expected):
    plain, pipe = pipeline(), pipeline()
    disk_budget(pipe, tmp_path)
    for each in (plain, pipe):
        each.load_lora_weights(lora())
    assert_same(draw(pipe), draw(plain))
    pipe.unload_lora_weights()
    assert_same(draw(pipe), expected)
