"""Every row of the composition table on several processes equals one process."""

import os
import re
from itertools import combinations

import pytest
import torch

from benchmarks.support.conditions import CASES, LORA, METHODS, REFUSED, draw_anew, pipeline_for, promised
from benchmarks.support.processes import run_processes


ROWS = [
    (),
    *((name,) for name in CASES),
    *((LORA, name) for name in METHODS),
    *(pair for pair in combinations(CASES, 2) if frozenset(pair) not in REFUSED),
    *promised(),
]
# Every n-th row; `FLUX_EXT_ROWS=1` runs all of them.
EVERY = int(os.environ.get("FLUX_EXT_ROWS", "15"))
# How many processes, how they share, the rows, and how much they may differ: sharing tokens changes the order of sums.
LAYOUTS = {
    "two share the tokens": (2, {"ulysses_degree": 2}, ROWS[::EVERY], 1e-5),
    "two take a branch each": (2, {"cfg_parallel": True}, ROWS[1 :: 2 * EVERY], 0.0),
    "four do both": (4, {"ulysses_degree": 2, "cfg_parallel": True}, ROWS[2 :: 2 * EVERY], 1e-5),
}


def together(names, settings):
    """What processes draw together."""
    pipe = pipeline_for(*names)
    pipe.enable_parallelism(**settings)
    try:
        return draw_anew(*names)
    except (RuntimeError, ValueError) as error:
        # The other branch may have other tokens.
        if not re.search("cannot be divided|other branch of guidance has failed", str(error)):
            raise
    finally:
        pipe.disable_parallelism()
    return together(names, {**settings, "ulysses_anything": True})


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    """The largest difference of each row, on each process, and how large it may be."""
    count, settings, rows, tolerance = LAYOUTS[request.param]
    alone = {names: draw_anew(*names) for names in rows}

    def work(rank):
        return {names: float((together(names, settings) - alone[names]).abs().max()) for names in rows}

    return run_processes(work, count, timeout=600), tolerance


def test_all_rows_equal_one_process(layout):
    found, tolerance = layout
    worst = {names: max(each[names] for each in found) for names in found[0]}
    assert max(worst.values()) <= tolerance, {names: value for names, value in worst.items() if not value <= tolerance}


def test_all_processes_draw_the_same(layout):
    found, _ = layout
    assert all(each == found[0] for each in found)


def test_the_rows_are_those_of_the_table():
    assert len(ROWS) > 100
    assert torch.is_tensor(draw_anew())
