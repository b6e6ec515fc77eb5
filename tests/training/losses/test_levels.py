"""Noise levels follow their formulas, and no split of a batch changes them."""

import math
from collections.abc import Callable

import pytest
import torch

from diffusers_flux_ext.training.draws import Draws
from diffusers_flux_ext.training.losses import draw_levels, levels, quantiles, round_to
from diffusers_flux_ext.training.losses.distributions import resolution_shift


COUNT, BINS = 20_000, 20
# A value of chi-square with 19 degrees of freedom that one in a thousand exceeds.
LARGEST_CHI_SQUARE = 43.8
TOKENS = 4096


def normal(*, mean: float, std: float) -> torch.Tensor:
    return torch.sigmoid(mean + std * torch.randn(COUNT, dtype=torch.float64))


def uniform() -> torch.Tensor:
    return torch.rand(COUNT, dtype=torch.float64)


def mode(scale: float) -> torch.Tensor:
    u = uniform()
    return 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


def beta(alpha: float, beta: float) -> torch.Tensor:
    two = torch.tensor([alpha, beta], dtype=torch.float64)
    return torch.distributions.Beta(two[0], two[1]).sample((COUNT,))


def shift(sigma: torch.Tensor, by: float) -> torch.Tensor:
    return by * sigma / (1 + (by - 1) * sigma)


def cut(sigma: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return sigma[(sigma >= low) & (sigma <= high)]


SAMPLERS: dict[str, tuple[str, dict, Callable[[], torch.Tensor]]] = {
    "uniform": ("uniform", {}, uniform),
    "uniform range": ("uniform", {"low": 0.2, "high": 0.6}, lambda: 0.2 + 0.4 * uniform()),
    "logit_normal": ("logit_normal", {}, lambda: normal(mean=0, std=1)),
    "logit_normal moved": ("logit_normal", {"mean": -0.7, "std": 1.6}, lambda: normal(mean=-0.7, std=1.6)),
    "mode": ("mode", {}, lambda: mode(1.29)),
    "mode of the ends": ("mode", {"scale": -0.6}, lambda: mode(-0.6)),
    "cosmap": ("cosmap", {}, lambda: 1 - 1 / (torch.tan(math.pi / 2 * uniform()) + 1)),
    "beta": ("beta", {"alpha": 2.5, "beta": 1.0}, lambda: beta(2.5, 1.0)),
    "beta of the ends": ("beta", {"alpha": 0.5, "beta": 0.5}, lambda: beta(0.5, 0.5)),
    "content": ("content", {}, lambda: 1 - uniform() ** 3),
    "style": ("style", {}, lambda: uniform() ** 3),
    "shift": ("logit_normal", {"shift": 3.0}, lambda: shift(normal(mean=0, std=1), 3.0)),
    "resolution": ("uniform", {"shift": "resolution"}, lambda: shift(uniform(), math.exp(1.15))),
    "shift and range": (
        "logit_normal",
        {"shift": 3.0, "low": 0.5, "high": 0.9},
        lambda: cut(shift(normal(mean=0, std=1), 3.0), 0.5, 0.9),
    ),
}


def chi_square(values: torch.Tensor, edges: torch.Tensor) -> float:
    """Compare the counts in bins that should be equally likely."""
    counts = torch.bincount(torch.bucketize(values.contiguous(), edges), minlength=BINS).double()
    expected = len(values) / BINS
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("case", SAMPLERS)
def test_levels_follow_their_formula(case: str) -> None:
    name, options, sampler = SAMPLERS[case]
    torch.manual_seed(5)
    chosen = levels(name, **options)
    inner = torch.arange(1, BINS, dtype=torch.float64) / BINS
    assert chi_square(sampler(), chosen.quantile(inner, TOKENS)) < LARGEST_CHI_SQUARE
    drawn = draw_levels(chosen, Draws(3), 0, range(2000), 2000, TOKENS, stratified=False)
    assert chi_square(drawn.double(), chosen.quantile(inner, TOKENS)) < LARGEST_CHI_SQUARE


@pytest.mark.parametrize("case", SAMPLERS)
def test_the_inverse_distribution_function_rises_within_its_range(case: str) -> None:
    name, options, _ = SAMPLERS[case]
    values = quantiles(levels(name, **options), TOKENS, 2000)
    assert values.dtype == torch.float64
    assert bool((values[1:] >= values[:-1]).all())
    assert options.get("low", 0) <= float(values[0])
    assert float(values[-1]) <= options.get("high", 1)


def test_the_reference_draws_each_tenth_as_often_as_published() -> None:
    values = quantiles(levels("reference"), TOKENS, 100_000)
    shares = torch.histc(values, 10, 0, 1) / len(values) * 100
    published = torch.tensor([3.3, 4.2, 4.8, 5.7, 6.8, 8.3, 10.5, 13.4, 17.9, 25.1], dtype=torch.float64)
    torch.testing.assert_close(shares, published, rtol=0, atol=0.1)


def test_a_range_of_the_reference_keeps_its_grid() -> None:
    whole = quantiles(levels("reference"), TOKENS, 1000)
    part = quantiles(levels("reference", low=0.3, high=0.7), TOKENS, 5000).unique()
    torch.testing.assert_close(part, whole[(whole >= 0.3) & (whole <= 0.7)], rtol=0, atol=1e-12)


def test_both_ends_of_a_range_belong_to_it() -> None:
    whole = quantiles(levels("reference"), TOKENS, 1000)
    low, high = float(whole[200]), float(whole[300])
    part = quantiles(levels("reference", low=low, high=high), TOKENS, 5000).unique()
    torch.testing.assert_close(part, whole[200:301], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "alpha, beta, closed",
    [
        (2.5, 1.0, lambda u: u**0.4),
        (1.0, 3.0, lambda u: 1 - (1 - u) ** (1 / 3)),
        (0.5, 0.5, lambda u: torch.sin(math.pi * u / 2) ** 2),
        (1.0, 1.0, lambda u: u),
    ],
)
def test_beta_is_exact_where_it_has_a_closed_form(alpha: float, beta: float, closed: Callable) -> None:
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    found = levels("beta", alpha=alpha, beta=beta).quantile(u, TOKENS)
    torch.testing.assert_close(found, closed(u), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens, expected", [(256, 1.649), (1024, 1.878), (2304, 2.332), (4096, 3.158)])
def test_the_shift_by_resolution_is_that_of_flux(tokens: int, expected: float) -> None:
    assert resolution_shift(tokens) == pytest.approx(expected, abs=5e-4)
    median = levels("uniform", shift="resolution").quantile(torch.tensor([0.5]), tokens)
    assert float(median) == pytest.approx(expected / (1 + expected), abs=1e-4)


def test_each_slice_gives_one_level_to_an_update() -> None:
    drawn = draw_levels(levels("uniform"), Draws(0), 7, range(16), 16, TOKENS)
    assert sorted((drawn * 16).floor().int().tolist()) == list(range(16))
    assert drawn.sort().values.tolist() != drawn.tolist()
    free = draw_levels(levels("uniform"), Draws(0), 7, range(16), 16, TOKENS, stratified=False)
    assert sorted((free * 16).floor().int().tolist()) != list(range(16))


def test_a_position_takes_every_slice_over_the_updates() -> None:
    drawn = [float(draw_levels(levels("uniform"), Draws(1), step, [2], 4, TOKENS)) for step in range(400)]
    counts = torch.histc(torch.tensor(drawn), 4, 0, 1)
    assert float(((counts - 100) ** 2 / 100).sum()) < 16.3  # one in a thousand, 3 degrees of freedom


@pytest.mark.parametrize("stratified", [True, False])
def test_no_split_of_a_batch_changes_its_levels(stratified: bool) -> None:
    chosen = levels("logit_normal", shift="resolution")

    def drawn(step: int, positions: list[int]) -> list[float]:
        return draw_levels(chosen, Draws(9), step, positions, 6, TOKENS, stratified).tolist()

    whole = drawn(4, [0, 1, 2, 3, 4, 5])
    assert whole == drawn(4, [0, 1]) + drawn(4, [2, 3]) + drawn(4, [4, 5])
    assert [whole[1], whole[4]] == drawn(4, [1, 4])
    assert whole != drawn(5, [0, 1, 2, 3, 4, 5])


def test_rounding_gives_what_the_transformer_sees() -> None:
    sigma = torch.tensor([0.61725, 0.3, 1.0, 0.0])
    rounded = round_to(sigma, torch.bfloat16)
    assert float(rounded[0]) == pytest.approx(0.616)
    assert torch.equal(round_to(sigma, torch.float32), sigma)
    every = torch.linspace(0, 1, 20_001)
    once = round_to(every, torch.bfloat16)
    seen = once.to(torch.bfloat16) * 1000
    assert torch.equal(seen, every.to(torch.bfloat16) * 1000)
    assert torch.equal(once, seen.float() / 1000)
    assert torch.equal(round_to(once, torch.bfloat16), once)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("logit_norml", {}, "did you mean 'logit_normal'"),
        ("uniform", {"mean": 1.0}, "`mean` is not an option of the levels 'uniform'"),
        ("beta", {"alpa": 1.0}, "did you mean 'alpha'"),
        ("beta", {"alpha": 0.1}, "`alpha` must be a number of at least 0.5"),
        ("logit_normal", {"std": 0}, "`std` must be a number above 0"),
        ("logit_normal", {"mean": math.nan}, "`mean` must be a number"),
        ("logit_normal", {"mean": True}, "got True"),
        ("mode", {"scale": 1.8}, "at most 1.75194"),
        ("uniform", {"shift": 0}, "`shift` must be a number above 0"),
        ("uniform", {"shift": "auto"}, "or 'resolution', got 'auto'"),
        ("uniform", {"low": 0.5, "high": 0.5}, "`low` must be below `high`"),
        ("uniform", {"high": 1.5}, "`high` must be a number of at least 0 and at most 1"),
        ("logit_normal", {"mean": 8, "std": 0.1, "high": 0.1}, "Practically no noise level"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        levels(name, **options)


def test_positions_outside_of_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"range\(4\), got \[4\]"):
        draw_levels(levels(), Draws(0), 0, [0, 4], 4, TOKENS)
