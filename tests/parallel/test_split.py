"""diffusers' own context parallelism in two processes on the CPU: exact, or refused before the first step."""

import re

import pytest
import torch
from diffusers import ContextParallelConfig, FirstBlockCacheConfig, FluxPipeline, FluxTransformer2DModel

from benchmarks.support.conditions import CASES
from benchmarks.support.processes import run_processes
from diffusers_flux_ext import FluxConditionedPipeline, TeaCacheConfig, apply_tea_cache, remove_tea_cache
from diffusers_flux_ext._compat.parallel import split_degree
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


# 16 text tokens and 2 x 3 of the image: two devices share them evenly.
WORKS = {
    "plain": lambda: {"negative_prompt": "ugly", "true_cfg_scale": 2.0},
    "batch": lambda: {"prompt": ["a cat", "a tree"], "conditions": [CASES["entities"].build()]},
    "references with a strength": lambda: {"conditions": [CASES["references"].build()]},
    "hidden padding": lambda: {"mask_padding": True},
    "a mask": lambda: {"joint_attention_kwargs": {"attention_mask": torch.rand(1, 1, 22, 22) + torch.eye(22) > 0.3}},
    "a masked image prompt": lambda: {"conditions": [CASES["ip-adapter"].build("region")]},
    "residuals": lambda: {"conditions": [CASES["controlnet"].build()]},
    "identity": lambda: {"conditions": [CASES["identity"].build()]},
}


def refusal(pipe, **arguments):
    try:
        pipe(**call_kwargs(**arguments))
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "nothing was refused"


def count_blocks(transformer):
    """A list that grows with each call of the first block."""
    calls = []
    handle = transformer.transformer_blocks[0].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    return calls, handle


@pytest.fixture(scope="module")
def found():
    """What both processes report."""
    torch.manual_seed(0)
    latents = {name: torch.randn(2 if name == "batch" else 1, 6, 64) for name in WORKS}
    works = {name: call_kwargs(**make(), generator=None, latents=latents[name]) for name, make in WORKS.items()}
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))
    alone = {name: pipe(**arguments).images for name, arguments in works.items()}
    cached = call_kwargs(latents=latents["plain"], generator=None, num_inference_steps=6)
    apply_tea_cache(pipe.transformer, TeaCacheConfig(1.0))
    calls, handle = count_blocks(pipe.transformer)
    alone["TeaCache"] = pipe(**cached).images
    skips = 6 - len(calls)
    handle.remove()
    remove_tea_cache(pipe.transformer)

    def difference(name, arguments):
        return float((pipe(**arguments).images - alone[name]).abs().max())

    def work(rank):
        # diffusers divides by the number of accelerators, which is 0 here.
        torch.accelerator.device_count = lambda: 1
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        result = {name: difference(name, works[name]) for name in WORKS}
        apply_tea_cache(pipe.transformer, TeaCacheConfig(1.0))
        calls, _ = count_blocks(pipe.transformer)
        result["TeaCache"] = difference("TeaCache", cached)
        result["skips"] = (skips, 6 - len(calls))
        remove_tea_cache(pipe.transformer)
        calls.clear()
        result["15 text tokens"] = refusal(pipe, max_sequence_length=15)
        result["another prompt"] = refusal(pipe, prompt=f"prompt {rank}")
        result["another seed"] = refusal(pipe, generator=torch.Generator().manual_seed(rank))
        result["another argument"] = refusal(pipe, **({"guidance_scale": 2.0} if rank else {"strength": 0.5}))
        own = torch.get_rng_state()
        torch.manual_seed(rank)
        drawn = pipe(**call_kwargs(generator=None)).images
        result["drawn"] = float(drawn.double().sum())
        torch.set_rng_state(own)
        calls.clear()
        pipe.transformer.enable_cache(FirstBlockCacheConfig(0.5))
        result["first block cache"] = refusal(pipe)
        result["calls"] = len(calls)
        return result

    return run_processes(work, 2, timeout=300)


@pytest.mark.parametrize("name", [*WORKS, "TeaCache"])
def test_what_works_is_what_one_process_computes(found, name):
    assert [each[name] < 1e-5 for each in found] == [True, True], [each[name] for each in found]


def test_all_processes_skip_the_same_steps_as_one(found):
    assert [each["skips"][1] for each in found] == [found[0]["skips"][0]] * 2
    assert 0 < found[0]["skips"][0] < 5


@pytest.mark.parametrize(
    "name, message",
    [
        ("15 text tokens", "15 text tokens cannot be divided by 2"),
        ("another prompt", "differ in `prompt`"),
        ("another seed", "differ in `generator`.*same seed"),
        ("another argument", "differ in the names of the arguments"),
        ("first block cache", "'FirstBlockCacheConfig'], by which each device decides"),
    ],
)
def test_the_rest_is_refused_on_all_processes(found, name, message):
    assert [bool(re.search(message, each[name])) for each in found] == [True, True], found[0][name]


def test_no_block_runs_before_a_refusal(found):
    assert [each["calls"] for each in found] == [0, 0]


def test_processes_draw_the_same_noise_without_a_generator(found):
    assert found[0]["drawn"] == found[1]["drawn"]


class TestMarks:
    """What other libraries leave on a transformer."""

    def test_cache_dit_keeps_its_sizes(self):
        transformer: FluxTransformer2DModel = tiny_transformer(0)
        assert split_degree(transformer) == 1
        transformer._is_parallelized = True
        assert split_degree(transformer) == 2
        transformer._parallelism_config = type("Sizes", (), {"ulysses_size": 2, "ring_size": 2, "tp_size": None})
        assert split_degree(transformer) == 4
        transformer._parallelism_config = type("Sizes", (), {"ulysses_size": None, "ring_size": None, "tp_size": 2})
        assert split_degree(transformer) == 1

    @pytest.mark.parametrize(
        "name, message",
        [
            ("entities", "Another library splits.*attention rules.*`pipe.enable_parallelism\\(ulysses_degree=2\\)`"),
            ("controlnet", "the residuals of ControlNetImage"),
        ],
    )
    def test_what_they_would_compute_wrongly_is_refused(self, name, message):
        pipe = tiny_pipeline(FluxConditionedPipeline)
        pipe.transformer._is_parallelized = True
        with pytest.raises(ValueError, match=message):
            pipe(**call_kwargs(conditions=[CASES[name].build()]))


def test_tea_cache_in_a_stock_pipeline_is_refused_where_another_library_splits():
    pipe = tiny_pipeline(FluxPipeline)
    apply_tea_cache(pipe.transformer, TeaCacheConfig(0.6, 3))
    pipe.transformer._is_parallelized = True
    with pytest.raises(ValueError, match="'TeaCacheConfig'], by which each device decides"):
        pipe(**call_kwargs())
