"""Context parallelism in two processes on the CPU: exact where it runs, refused before the first step elsewhere."""

import os
import re
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import FluxPipeline, FluxTransformer2DModel

from benchmarks.support.conditions import CASES
from benchmarks.support.tiny.controlnet import PICTURE
from diffusers_flux_ext import FluxConditionedPipeline, ReferenceImages, TeaCacheConfig, apply_tea_cache
from diffusers_flux_ext._compat import split_degree
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
# 16 text tokens and 2 x 3 of the image: two devices share them evenly.
WORKS = {
    "plain": lambda: {**GUIDED},
    "batch": lambda: {"prompt": ["a cat", "a tree"]},
    "references": lambda: {"conditions": [ReferenceImages(PICTURE, preferred_size=False)]},
    "ip-adapter": lambda: {"conditions": [CASES["ip-adapter"].build()]},
    "lora embedding": lambda: {"conditions": [CASES["lora embedding"].build()]},
    "inpaint": lambda: {"conditions": [CASES["inpaint"].build()]},
}
REFUSED = {
    "entities": (lambda: {"conditions": [CASES["entities"].build()]}, "over 2 devices.*attention rules"),
    "a reference with a strength": (lambda: {"conditions": [CASES["references"].build()]}, "attention rules"),
    "mask_padding": (lambda: {"mask_padding": True}, "hidden padding"),
    "a mask": (
        lambda: {"joint_attention_kwargs": {"attention_mask": torch.ones(1, 1, 22, 22, dtype=torch.bool)}},
        "`attention_mask`",
    ),
    "a masked image prompt": (
        lambda: {"conditions": [CASES["ip-adapter"].build("region")]},
        "the region of IPAdapterImages",
    ),
    "residuals later": (
        lambda: {"conditions": [CASES["controlnet"].build("start")]},
        "the residuals of ControlNetImage",
    ),
    "identity": (lambda: {"conditions": [CASES["identity"].build()]}, "the residuals of InfiniteYouIdentity"),
    "15 text tokens": (lambda: {"max_sequence_length": 15}, "15 text tokens cannot be divided by 2"),
}


def count_blocks(pipe):
    """A list that grows with each call of the first block."""
    calls = []
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    return calls


def refusal(pipe, arguments):
    try:
        pipe(**call_kwargs(**arguments))
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def run_rank(rank, port, results):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    from diffusers import ContextParallelConfig

    dist.init_process_group("gloo", rank=rank, world_size=2)
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))
    works = {name: call_kwargs(**make(), generator=None, latents=LATENTS[name]) for name, make in WORKS.items()}
    alone = {name: pipe(**arguments).images for name, arguments in works.items()}
    # diffusers divides by the number of accelerators, which is 0 here.
    torch.accelerator.device_count = lambda: 1
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    found = {name: float((pipe(**works[name]).images - alone[name]).abs().max()) for name in WORKS}
    calls = count_blocks(pipe)
    found |= {name: refusal(pipe, make()) for name, (make, _) in REFUSED.items()}
    apply_tea_cache(pipe.transformer, TeaCacheConfig(0.6, 3))
    found["TeaCache"] = refusal(pipe, {})
    found["TeaCache in a stock pipeline"] = refusal(tiny_pipeline(FluxPipeline, **pipe.components), {})
    results.put({**found, "calls": len(calls)})
    dist.destroy_process_group()


LATENTS = {name: torch.randn(2 if name == "batch" else 1, 6, 64) for name in WORKS}


@pytest.fixture(scope="module")
def found():
    """What both ranks report."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, since importing everything again takes longer than the test.
    context = mp.get_context("fork")
    results = context.SimpleQueue()
    ranks = [context.Process(target=run_rank, args=(rank, port, results), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    states = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert states == [0, 0]
    return [results.get() for _ in ranks]


@pytest.mark.parametrize("name", WORKS)
def test_what_works_is_what_one_process_computes(found, name):
    assert [each[name] < 1e-5 for each in found] == [True, True], [each[name] for each in found]


@pytest.mark.parametrize("name, message", [(name, message) for name, (_, message) in REFUSED.items()])
def test_the_rest_is_refused_on_all_ranks(found, name, message):
    assert [bool(re.search(message, each[name])) for each in found] == [True, True], found[0][name]


@pytest.mark.parametrize("name", ["TeaCache", "TeaCache in a stock pipeline"])
def test_a_cache_that_decides_by_tokens_is_refused(found, name):
    assert all("'TeaCacheConfig'], by which each device decides" in each[name] for each in found)


def test_no_block_runs_before_a_refusal(found):
    assert [each["calls"] for each in found] == [0, 0]


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
