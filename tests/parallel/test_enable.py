"""`enable_parallelism` of a pipeline: its arguments, and what is refused."""

import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.support.processes import run_processes
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext._compat import parallel as compat
from diffusers_flux_ext.attention.parallel import check_runs_split
from diffusers_flux_ext.parallel.ranks import ranks_of
from diffusers_flux_ext.sequence import Contribution, JointLayout
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "which is 1 device; expected a degree of at least 2, or `cfg_parallel=True`"),
        ({"ulysses_degree": 0}, ValueError, "`ulysses_degree` is 0"),
        ({"cfg_parallel": True, "ulysses_anything": True}, ValueError, "`ulysses_anything` has no effect"),
        ({"ulysses_degree": 2, "timeout": 0}, ValueError, "`timeout` must be above 0 seconds, got 0"),
        ({"ulysses_degree": 2}, RuntimeError, "torchrun --nproc-per-node=2 script.py"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_pipeline(FluxConditionedPipeline).enable_parallelism(**arguments)


def test_disabling_without_enabling_does_nothing():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.disable_parallelism()
    assert ranks_of(pipe.transformer) is None


@pytest.fixture(scope="module")
def found():
    pipe = tiny_pipeline(FluxConditionedPipeline)

    def error_of(action):
        try:
            action()
        except (RuntimeError, ValueError) as error:
            return str(error)
        return "nothing was refused"

    def work(rank):
        result = {"wrong number": error_of(lambda: pipe.enable_parallelism(4, cfg_parallel=True))}
        before = pipe(**call_kwargs()).images
        pipe.enable_parallelism(2, timeout=3)
        result["twice"] = error_of(lambda: pipe.enable_parallelism(2))
        result["shared"] = ranks_of(pipe.to_pipeline(FluxConditionedPipeline).transformer) is not None
        pipe.disable_parallelism()
        result["restored"] = torch.equal(pipe(**call_kwargs()).images, before)
        pipe.enable_parallelism(cfg_parallel=True, timeout=3)
        with ranks_of(pipe.transformer).calling({}):
            result["nested"] = error_of(lambda: pipe(**call_kwargs()))
        start = time.monotonic()
        # The other process does not make this call.
        result["alone"] = error_of(lambda: pipe(**call_kwargs())) if rank == 0 else ""
        result["seconds"] = time.monotonic() - start
        return result

    return run_processes(work, 2)


@pytest.mark.parametrize(
    "name, message",
    [
        ("wrong number", "There are 2 processes, but `ulysses_degree=4` and `cfg_parallel=True` need 8"),
        ("twice", "parallel already. Call `disable_parallelism` first"),
        ("nested", "Another thread of this process draws with the same transformer"),
    ],
)
def test_refusals(found, name, message):
    assert all(message in each[name] for each in found), found[0][name]


def test_pipelines_that_share_a_transformer_share_its_processes(found):
    assert all(each["shared"] for each in found)


def test_disabling_restores_every_bit(found):
    assert all(each["restored"] for each in found)


def test_a_process_that_is_left_alone_gives_up(found):
    assert "Not all 2 processes have made this call within 3 seconds" in found[0]["alone"]
    assert found[0]["seconds"] < 60


@pytest.mark.parametrize(
    "settings, has_mask, message",
    [
        ({"ring": 2, "backend": "_native_cudnn", "backend_runs_ring": True}, True, "Ring attention.*hidden padding"),
        ({"ring": 2}, False, "'native' does not. Set another one"),
        ({"ulysses": 4}, False, "2 attention heads, which 4 devices cannot share evenly"),
    ],
)
def test_what_cannot_be_split_is_refused(settings, has_mask, message, monkeypatch):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    known = {"ulysses": 1, "ring": 1, "evenly": True, "group": None, "backend": "native", "backend_runs_ring": False}
    given = compat.SplitSettings(**{**known, **settings})
    config = SimpleNamespace(ulysses_degree=given.ulysses, ring_degree=given.ring)
    pipe.transformer._parallel_config = SimpleNamespace(context_parallel_config=config)
    monkeypatch.setattr("diffusers_flux_ext.attention.parallel.split_settings", lambda transformer: given)
    layout = JointLayout(("prompt", "target"), ("text", "target"), (16, 8), 1)
    with pytest.raises(ValueError, match=message):
        check_runs_split(pipe.transformer, [Contribution()], layout, has_mask)
