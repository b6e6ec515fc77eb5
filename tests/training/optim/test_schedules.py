"""Factors of the learning rate."""

import pytest
import torch
from diffusers import optimization

from diffusers_flux_ext.training import warmup_flat_cosine
from diffusers_flux_ext.training.optim import OptimizerSettings, build_optimizer, schedule, set_rates
from diffusers_flux_ext.training.optim.schedules import SHAPES


TOTAL, WARMUP = 60, 10


def peers(name: str, **options: float) -> list[float]:
    """Return diffusers' factors."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    make = getattr(optimization, f"get_{name}_schedule_with_warmup")
    scheduler = make(optimizer, num_warmup_steps=WARMUP, num_training_steps=TOTAL, **options)
    factors = []
    for _ in range(TOTAL):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    "name, options, peer, peer_options",
    [
        ("linear", {}, "linear", {}),
        ("cosine", {}, "cosine", {}),
        ("polynomial", {"power": 3.0, "final": 0.1}, "polynomial_decay", {"power": 3.0, "lr_end": 0.1}),
        ("cosine_restarts", {"cycles": 4}, "cosine_with_hard_restarts", {"num_cycles": 4}),
    ],
)
def test_schedules_equal_those_of_diffusers_after_the_warm_up(
    name: str, options: dict, peer: str, peer_options: dict
) -> None:
    chosen = schedule(name, WARMUP, **options)
    ours = [chosen(update, TOTAL) for update in range(TOTAL)]
    assert ours[WARMUP:] == pytest.approx(peers(peer, **peer_options)[WARMUP:], abs=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_the_warm_up_rises_linearly_and_the_rest_ends_at_the_final_factor(name: str) -> None:
    final = {"final": 0.25} if "final" in SHAPES[name].numbers else {}
    chosen = schedule(name, WARMUP, **final)
    factors = [chosen(update, TOTAL) for update in range(TOTAL + 1)]
    assert factors[:WARMUP] == pytest.approx([(update + 1) / WARMUP for update in range(WARMUP)])
    assert factors[TOTAL] == pytest.approx(0.25 if final else 1.0)
    assert all(0 < factor <= 1 for factor in factors)


def test_rex_stays_above_the_line_and_falls() -> None:
    rex, linear = schedule("rex"), schedule("linear")
    assert rex(30, 60) == pytest.approx(0.5 / 0.75)
    assert all(rex(update, 60) > linear(update, 60) for update in range(1, 60))
    factors = [rex(update, 60) for update in range(61)]
    assert factors == sorted(factors, reverse=True)


def test_the_flat_cosine_is_the_function_of_its_own_name() -> None:
    chosen = schedule("flat_cosine", WARMUP, flat_until=0.3, final=0.05)
    ours = [chosen(update, TOTAL) for update in range(TOTAL)]
    assert ours == [warmup_flat_cosine(update, TOTAL, WARMUP, 0.3, 0.05) for update in range(TOTAL)]


def test_rates_are_shares_of_the_peaks() -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    optimizers = build_optimizer(parameters, OptimizerSettings(lr=0.5))
    set_rates(optimizers, 0.1)
    set_rates(optimizers, 0.5)
    assert optimizers[0].param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("constant", {"final": 0.1}, "`final` is not an option of the schedule 'constant'"),
        ("cosine", {"final": 2}, "`final` must be a number of at least 0 and at most 1"),
        ("cosine_restarts", {"cycles": 1.5}, "`cycles` must be a whole number"),
        ("cosine", {"warmup": -1}, "`warmup` must be a whole number of at least 0"),
    ],
)
def test_wrong_schedules_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(name, **options)


def test_a_run_within_its_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than its warm-up of 10 updates, got 10"):
        schedule("cosine", 10)(0, 10)
