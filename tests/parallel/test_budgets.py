"""A VRAM budget on each of two processes that draw one image: what they draw, and what they refuse together."""

import re
import time

import pytest
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.support.conditions import CASES
from benchmarks.support.processes import run_processes
from diffusers_flux_ext import apply_vram_plan, denoise, disable_vram_budget, plan_vram
from diffusers_flux_ext._compat import vram_budget_of
from diffusers_flux_ext.offload.budget import demand
from diffusers_flux_ext.offload.budget.budget import VRAMBudget
from diffusers_flux_ext.offload.budget.live_bytes import LiveBytes
from tests.fixtures.vram import GIB, SIZES, budget, draw, pipeline


TYPES = ({}, {"storage_dtype": torch.float8_e4m3fn})
CALLS = {
    "plain": lambda: {},
    "entities": lambda: {"conditions": [CASES["entities"].build()]},
    "guided, with references": lambda: {
        "conditions": [CASES["references"].build()], "negative_prompt": "ugly", "true_cfg_scale": 2.0,
    },
}  # fmt: skip
LARGE = {"height": 128, "width": 192}


@pytest.fixture(scope="module")
def tiny_numbers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers_flux_ext.offload.budget.planner.MARGIN_BYTES", 0)
        patch.setattr("diffusers_flux_ext.offload.budget.placement.SMALL", 2**14)
        yield


def seconds_and_error(action):
    start = time.monotonic()
    try:
        action()
    except (OSError, RuntimeError, ValueError) as error:
        return time.monotonic() - start, type(error).__name__, str(error)
    return time.monotonic() - start, "", "nothing was refused"


def blocks_run(pipe, action):
    calls = []
    handle = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *given: calls.append(1))
    error = seconds_and_error(action)
    handle.remove()
    return (*error, len(calls))


def count_forward(module, action):
    """The most bytes that tensors made inside of a module's forward pass take at once."""
    counted = LiveBytes()
    handles = [
        module.register_forward_pre_hook(lambda *given: counted.__enter__() and None),
        module.register_forward_hook(lambda *given: counted.__exit__(None, None, None)),
    ]
    action()
    for handle in handles:
        handle.remove()
    return counted.peak


@pytest.fixture(scope="module")
def found(tiny_numbers):
    pipe = pipeline()
    given = {name: make() for name, make in CALLS.items()}
    alone = {name: draw(pipe, **arguments) for name, arguments in given.items()}

    def difference(name):
        return float((draw(pipe, **given[name]) - alone[name]).abs().max())

    def under(names, rank, settings, **options):
        """The steps that put each process under a budget of its own, and let them share the work."""
        return [
            lambda: budget(pipe, names[rank], **options),
            lambda: pipe.enable_parallelism(**settings, timeout=20),
        ]

    def case(steps, calls):
        for step in steps:
            step()
        plan = vram_budget_of(pipe).plan
        result = {name: difference(name) for name in calls}, plan.workload.devices, plan.component("transformer").level
        pipe.disable_parallelism()
        disable_vram_budget(pipe)
        return result

    def work(rank):
        result = {}
        budget_first = under(["streamed", "whole"], rank, {"ulysses_degree": 2})
        result["budgets first"] = case(budget_first, CALLS)
        parallel_first = list(reversed(under(["partly", "leaves"], rank, {"ulysses_degree": 2})))
        result["processes first"] = case(parallel_first, ["plain", "entities"])
        branches = under(["one", "partly"], rank, {"cfg_parallel": True})
        result["branches"] = case(branches, ["guided, with references"])
        # The second process has no room for a larger call.
        for step in under(["whole", "leaves"], rank, {"ulysses_degree": 2}):
            step()
        result["larger"] = blocks_run(pipe, lambda: draw(pipe, height=256, width=384))
        result["after it"] = difference("plain")
        pipe.disable_parallelism()
        result["alone again"] = (difference("plain"), vram_budget_of(pipe).plan.workload.devices)
        disable_vram_budget(pipe)
        demand.TILE_SIZES = (None, 64, 32)
        result["one budget"] = seconds_and_error(lambda: some_budget(rank))
        disable_vram_budget(pipe)
        # Only the second process has to decode in tiles.
        large = plan_vram(pipe, (8e6, 3.2e6)[rank] / GIB, ulysses_degree=2, **{**SIZES, **LARGE})
        apply_vram_plan(pipe, large, "cpu")
        pipe.enable_parallelism(2, timeout=20)
        result["tiles"] = (
            large.vae_tile,
            vram_budget_of(pipe).plan.vae_tile,
            float(draw(pipe, **LARGE).double().sum()),
        )
        counted = count_forward(pipe.transformer, lambda: draw(pipe, **LARGE))
        plans = (vram_budget_of(pipe).plan, plan_vram(pipe, 1, ulysses_degree=1, **{**SIZES, **LARGE}))
        result["counted"] = (counted, *(each.component("transformer").activations for each in plans))
        pipe.disable_parallelism()
        result["own tiles"] = vram_budget_of(pipe).plan.vae_tile
        # The second process fails for another reason than a small budget.
        monkey = pytest.MonkeyPatch()
        if rank:
            monkey.setattr(VRAMBudget, "fit", lambda *given: open("/nowhere/offload"))
        result["another failure"] = seconds_and_error(lambda: pipe.enable_parallelism(2, timeout=20))
        monkey.undo()
        disable_vram_budget(pipe)
        # The branch of the second process is refused before its budget is looked at.
        for step in under(["whole", "partly"], rank, {"cfg_parallel": True}):
            step()
        if rank:
            monkey.setattr(denoise, "check_runs_split", lambda *given: int("refused"))
        result["one branch"] = seconds_and_error(lambda: difference("guided, with references"))
        monkey.undo()
        pipe.disable_parallelism()
        disable_vram_budget(pipe)
        pipe.enable_parallelism(2, timeout=20)
        result["without a budget"] = difference("entities")
        pipe.disable_parallelism()
        # Rounds the weights of the second process, so it comes last.
        result["types"] = seconds_and_error(
            lambda: [step() for step in under(["whole", "whole"], rank, {"ulysses_degree": 2}, **TYPES[rank])]
        )
        return result

    def some_budget(rank):
        if rank:
            apply_vram_plan(pipe, plan_vram(pipe, 3.2e6 / GIB, **{**SIZES, **LARGE}), "cpu")
        pipe.enable_parallelism(2, timeout=20)

    return run_processes(work, 2)


@pytest.mark.parametrize("case, levels", [
    ("budgets first", ["blocks", "whole"]), ("processes first", ["blocks", "leaves"]), ("branches", ["blocks"] * 2),
])  # fmt: skip
def test_each_process_keeps_its_budget_and_the_image_does_not_change(found, case, levels):
    for each in found:
        differences, devices, _ = each[case]
        assert max(differences.values()) < 1e-5, differences
        assert devices == (1 if case == "branches" else 2)
    assert [each[case][2] for each in found] == levels


def test_branches_side_by_side_keep_every_bit(found):
    assert [set(each["branches"][0].values()) for each in found] == [{0.0}, {0.0}]


def test_a_call_too_large_for_one_process_is_refused_on_all_before_the_first_block(found):
    assert [each["larger"][1] for each in found] == ["RuntimeError", "VRAMBudgetError"]
    assert re.search(r"budget of process \[1\] is too small.*smaller call", found[0]["larger"][2])
    assert "the smallest that works is" in found[1]["larger"][2]
    assert [each["larger"][3] for each in found] == [0, 0]
    # Far below the 20 seconds after which a process that is left alone gives up.
    assert all(each["larger"][0] < 15 for each in found)


def test_a_smaller_call_works_after_a_refusal_and_so_does_one_process(found):
    assert all(each["after it"] < 1e-5 and each["alone again"] == (0.0, 1) for each in found)


@pytest.mark.parametrize("name, message", [
    ("types", "store weights in different data types.*same `storage_dtype`"),
    ("one budget", r"tiles of 64 pixels on processes with a small VRAM budget, but process 0 has no budget"),
])  # fmt: skip
def test_budgets_that_do_not_fit_together_are_refused_on_all(found, name, message):
    assert all(re.search(message, each[name][2]) and each[name][1] == "ValueError" for each in found), found[0][name]


def test_all_processes_decode_in_the_smallest_tiles(found):
    assert [each["tiles"][0] for each in found] == [None, 64]
    assert [each["tiles"][1] for each in found] == [64, 64]
    assert found[0]["tiles"][2] == found[1]["tiles"][2]


def test_a_process_alone_again_decodes_in_its_own_tiles(found):
    assert [each["own tiles"] for each in found] == [None, 64]


def test_any_failure_of_one_process_is_told_to_the_others(found):
    assert [each["another failure"][1] for each in found] == ["RuntimeError", "FileNotFoundError"]
    assert "Process [1] failed when it planned its VRAM budget" in found[0]["another failure"][2]
    assert all(each["another failure"][0] < 15 for each in found)


def test_a_branch_that_is_refused_leaves_no_process_waiting(found):
    assert [each["one branch"][1] for each in found] == ["RuntimeError", "ValueError"]
    assert "other branch of guidance has failed" in found[0]["one branch"][2]
    assert all(each["one branch"][0] < 15 for each in found)


def test_activations_are_those_of_a_share(found):
    for each in found:
        counted, share, whole = each["counted"]
        assert counted <= share < whole
        assert counted > 0.5 * share, each["counted"]


def test_a_budget_can_be_taken_off_while_processes_share_tokens(found):
    assert all(each["without a budget"] < 1e-5 for each in found)


def test_a_plan_for_several_devices_counts_their_shares():
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    models = {"transformer": model.to(torch.bfloat16)}
    found = [plan_vram(models, 8, ulysses_degree=each) for each in (1, 2, 4, 8)]
    activations = [plan.phase("loop").activations for plan in found]
    assert activations == sorted(activations, reverse=True)
    assert activations[3] < 0.25 * activations[0]
    assert "image tokens shared by 4 devices" in str(found[2])
    assert found[2].to_dict()["devices"] == 4
    with pytest.raises(ValueError, match="`ulysses_degree` is 0"):
        plan_vram(models, 8, ulysses_degree=0)
