"""Compiled blocks, fused projections and attention backends with conditions of several kinds at once."""

import pytest

from benchmarks.compile_table import attended, compiled, fused


MIXED = ("entities", "references", "controlnet", "ip-adapter xlabs")


@pytest.mark.slow
def test_blocks_are_compiled_once_for_all_steps_branches_and_again_for_other_sizes():
    error, counts = compiled(("entities", "controlnet"))
    assert error < 1e-4
    first, again, another, third = counts
    assert first > 0
    assert again == 0
    # With the second size lengths become dynamic, which serves all others.
    assert another > 0
    assert third == 0


def test_fused_projections_change_nothing():
    assert fused(MIXED) < 1e-4


@pytest.mark.parametrize("backend", ["_native_math", "_native_flash"])
def test_backends_agree(backend):
    assert attended(("references", "controlnet"), backend) < 1e-4
