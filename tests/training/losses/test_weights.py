"""Weights by noise level: published values, and means of 1 where they are promised."""

import pytest
import torch

from diffusers_flux_ext.training.losses import levels, quantiles, weighting


TOKENS = 4096


@pytest.mark.parametrize("sigma, expected", [(1.0, 0), (0.9, 0.544), (0.668, 1.545), (0.502, 1.794), (0.035, 0.194)])
def test_the_bell_has_the_published_values(sigma: float, expected: float) -> None:
    assert float(weighting("bell")(torch.tensor(sigma))) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name, over", [("none", "style"), ("bell", "reference"), ("cosmap", "uniform")])
def test_the_mean_over_the_draws_is_one(name: str, over: str) -> None:
    drawn = quantiles(levels(over), TOKENS, 50_000)
    assert float(weighting(name)(drawn).mean()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"shift": "resolution"}, {"low": 0.6, "shift": 3.0}])
def test_min_snr_has_mean_one_over_the_levels(options: dict) -> None:
    chosen = levels("logit_normal", **options)
    weights = weighting("min_snr", levels=chosen, num_tokens=1024, gamma=5)
    drawn = quantiles(chosen, 1024, 30_000)
    assert float(weights(drawn).mean()) == pytest.approx(1, abs=1e-4)


def test_min_snr_weighs_the_error_of_the_clean_image_by_the_capped_ratio() -> None:
    sigma = torch.tensor([0.05, 0.2, 0.5, 0.95], dtype=torch.float64)
    weights = weighting("min_snr", levels=levels("uniform"), gamma=2.0)(sigma)
    ratio = ((1 - sigma) / sigma) ** 2
    # The error of the clean image is sigma ** 2 times the velocity's.
    expected = ratio.clamp(max=2.0) * sigma**2
    torch.testing.assert_close(weights / weights[2], expected / expected[2])


def test_the_inverse_square_stays_finite() -> None:
    weights = weighting("sigma_sqrt")(torch.tensor([0.0, 1e-3, 0.5, 1.0]))
    torch.testing.assert_close(weights, torch.tensor([1e6, 1e6, 4.0, 1.0]))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("bel", {}, "did you mean 'bell'"),
        ("bell", {"gamma": 5}, "`gamma` is not an option of the weighting 'bell'"),
        ("min_snr", {}, "pass `levels`"),
        ("min_snr", {"levels": levels("uniform"), "gamma": 0}, "`gamma` must be a number above 0"),
    ],
)
def test_wrong_weightings_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighting(name, **options)
