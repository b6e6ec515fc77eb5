"""Every row of the composition table on several processes equals one process."""

import os
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
LAYOUTS = {
    "two share the tokens": (2, {"ulysses_degree": 2}, ROWS[::EVERY]),
    "two take a branch each": (2, {"cfg_parallel": True}, ROWS[1 :: 2 * EVERY]),
    "four do both": (4, {"ulysses_degree": 2, "cfg_parallel": True}, ROWS[2 :: 2 * EVERY]),
}


def together(names, settings):
    """What processes draw together."""
    pipe = pipeline_for(*names)
    pipe.enable_parallelism(**settings)
    try:
        return draw_anew(*names)
    except ValueError as error:
        if "cannot be divided" not in str(error):
            raise
    finally:
        pipe.disable_parallelism()
    return together(names, {**settings, "ulysses_anything": True})


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    """The largest difference of each row, on each process."""
    count, settings, rows = LAYOUTS[request.param]
    alone = {names: draw_anew(*names) for names in rows}

    def work(rank):
        return {names: float((together(names, settings) - alone[names]).abs().max()) for names in rows}

    return request.param, rows, run_processes(work, count, timeout=600)


def test_all_rows_equal_one_process(layout):
    _, rows, found = layout
    worst = {names: max(each[names] for each in found) for names in rows}
    assert max(worst.values()) < 1e-5, {names: value for names, value in worst.items() if not value < 1e-5}


def test_all_processes_draw_the_same(layout):
    name, rows, found = layout
    assert all(each == found[0] for each in found), name


def test_branches_side_by_side_change_no_bit(layout):
    name, rows, found = layout
    if name != "two take a branch each":
        pytest.skip("sharing tokens changes the order of sums")
    assert {value for each in found for value in each.values()} == {0.0}


def test_the_rows_are_those_of_the_table():
    assert len(ROWS) > 100
    assert torch.is_tensor(draw_anew())
