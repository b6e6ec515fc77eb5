"""`vram_config` of the reference: every combination is mapped, or refused with a reason."""

from itertools import product

import pytest
import torch

from diffusers_flux_ext import FluxConditionedPipeline, vram_plan_from_diffsynth
from diffusers_flux_ext.diffsynth.vram import STAGES
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline


BF16, FP16, FP32, E4, E5 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2
RANK = {"disk": 0, "cpu": 1, "cuda": 2}
PAIRS = [("disk", "disk"), *product((BF16, FP32, E4), ("cpu", "cuda"))]
DISK = {"ram_budget_gib": 4, "offload_dir": "offload"}


def config(*stages):
    return {
        f"{name}_{key}": value for name, pair in zip(STAGES, stages) for key, value in zip(("dtype", "device"), pair)
    }


def test_the_published_ladders():
    # The low-memory examples of the reference: fp8 in memory, and weights read from disk.
    low = config((E4, "cpu"), (E4, "cpu"), (E4, "cuda"), (BF16, "cuda"))
    assert vram_plan_from_diffsynth(low, 8) == {"budget_gib": 8, "device": "cuda", "storage_dtype": E4}
    disk = config(("disk", "disk"), (E4, "cpu"), (E4, "cuda"), (BF16, "cuda"))
    assert vram_plan_from_diffsynth(disk, 6.5, **DISK) == {
        "budget_gib": 6.5,
        "device": "cuda",
        "storage_dtype": E4,
        **DISK,
    }
    plain = config((BF16, "cpu"), (BF16, "cpu"), (BF16, "cuda"), (BF16, "cuda"))
    assert vram_plan_from_diffsynth(plain, 8) == {"budget_gib": 8, "device": "cuda"}


def test_every_combination_is_mapped_or_refused_with_a_reason():
    mapped = 0
    for stages in product(PAIRS, PAIRS, PAIRS, [(BF16, "cuda"), (BF16, "cpu"), (FP32, "cuda")]):
        dtypes, devices = zip(*stages)
        ranks = [RANK[device] for device in devices]
        rounds_first = dtypes[-1] == FP32 and BF16 in dtypes
        possible = ranks == sorted(ranks) and not rounds_first
        if not possible:
            with pytest.raises(ValueError, match="farther from the computation|would round them first"):
                vram_plan_from_diffsynth(config(*stages), 8, **DISK)
            continue
        found = vram_plan_from_diffsynth(config(*stages), 8, **DISK)
        assert found.get("storage_dtype") == (E4 if E4 in dtypes else None)
        assert ("offload_dir" in found) == ("disk" in devices)
        mapped += 1
    assert mapped > 100


@pytest.mark.parametrize(
    "changes, limit, message",
    [
        ({"computation_dtype": E4}, 8, "multiplies in 8 bits"),
        ({"computation_device": "disk", "computation_dtype": "disk"}, 8, "nothing can be computed"),
        ({"offload_dtype": "disk", "offload_device": "cpu"}, 8, "both are"),
        ({"offload_dtype": E4, "onload_dtype": E5}, 8, "rounds twice"),
        ({"offload_dtype": FP16}, 8, "would round them first"),
        ({"offload_dtype": torch.int8}, 8, "floating"),
        ({"offload_device": "cuda:1", "onload_device": "cuda:1"}, 8, "several cards"),
        ({"offload_device": "moon"}, 8, "unknown"),
        ({"computation_dtype": None}, 8, "no `computation_dtype`"),
        ({"vram_limit": 3}, 8, "has the unknown keys"),
        ({"offload_dtype": "disk", "offload_device": "disk"}, 8, "takes `ram_budget_gib`"),
        ({}, 0, "`vram_limit` is 0"),
        ({"computation_device": "cpu", "preparing_device": "cpu"}, None, "no card here"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes, limit, message):
    base = config((BF16, "cpu"), (BF16, "cpu"), (BF16, "cuda"), (BF16, "cuda"))
    with pytest.raises(ValueError, match=message):
        vram_plan_from_diffsynth({**base, **changes}, limit)


def test_configs_by_component_run():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    kwargs = call_kwargs(num_inference_steps=1)
    expected = pipe(**kwargs).images
    stored = {"offload_dtype": E4, "computation_dtype": FP32, "computation_device": "cpu"}
    plain = {"computation_dtype": FP32, "computation_device": "cpu"}
    arguments = vram_plan_from_diffsynth({"transformer": stored, "text_encoder_2": plain}, 2)
    assert arguments["storage_dtype"] == {"transformer": E4}
    pipe.enable_vram_budget(**arguments, height=32, width=48)
    images = pipe(**{**kwargs, "generator": torch.Generator().manual_seed(0)}).images
    assert 0 < (images - expected).abs().mean() < 0.05
