"""The resident memory of 20 steps of a streamed model, with and without a VRAM budget."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.offload.disk.streamed_steps import WAYS


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Resident memory before, the size of the blocks, and the memory after each step, by way of streaming."""
    command = [sys.executable, "-m", "tests.offload.disk.streamed_steps", str(tmp_path_factory.mktemp("tower"))]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    return dict(zip(WAYS, lines, strict=True))


def test_memory_is_flat_over_20_steps(measured):
    steps = measured["plain"][2:]
    assert len(steps) == 20
    assert max(steps[2:]) - steps[1] < 2 * 2**20


@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_never_whole_in_memory(measured, way):
    base, total, *steps = measured[way]
    assert len(steps) == 20
    # Two of twelve blocks, and what the allocator and the libraries take.
    assert max(steps) - base < total // 2
