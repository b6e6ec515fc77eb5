"""The simulation of one process that serves many cards."""

import pytest

from benchmarks.support.scaling import simulate


def test_few_cards_are_always_at_work():
    load = simulate(8, job_seconds=8.0, driver_seconds=0.01, jobs=4000)
    assert load.rate == pytest.approx(1.0, rel=0.02)
    assert load.cards_busy > 0.98
    assert load.driver_busy == pytest.approx(0.01, rel=0.05)


def test_more_cards_than_the_process_can_serve_wait_for_it():
    load = simulate(4096, job_seconds=8.0, driver_seconds=0.01, jobs=40_000)
    assert load.rate == pytest.approx(100.0, rel=0.02)
    assert load.driver_busy > 0.98
    assert load.cards_busy == pytest.approx(100 * 8 / 4096, rel=0.05)


def test_without_costs_all_is_drawing():
    assert simulate(64, 8.0, 0.0, 4000).cards_busy > 0.98
