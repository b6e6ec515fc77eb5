"""A VRAM budget: plans that fit, weights that are where the plan says, and pictures that do not change."""

import json

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks import FirstBlockCacheConfig

from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from diffusers_flux_ext import (
    ControlNetImage,
    FluxConditionedPipeline,
    VRAMBudgetError,
    disable_vram_budget,
    plan_vram,
)
from diffusers_flux_ext._compat import vram_budget_of
from diffusers_flux_ext.demand import Demand
from tests.fixtures.vram import BUDGETS, GIB, SIZES, budget, draw, pipeline


pytestmark = [pytest.mark.usefixtures("tiny_vram_numbers"), pytest.mark.versions]


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
    with pytest.raises(VRAMBudgetError, match="the smallest that works is .* a smaller image") as error:
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
        for given in ({}, {"height": 1536}, {"batch": 2}, {"added": [Demand(text_tokens=1024)]})
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
