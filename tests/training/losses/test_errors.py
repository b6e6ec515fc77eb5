"""Errors per sample: plain, robust, masked."""

import pytest
import torch

from diffusers_flux_ext.training.losses import errors


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 3, 5, 4, generator=generator)
    return both[0], both[1], torch.tensor([0.1, 0.5, 0.9])


def test_the_mean_square_of_each_sample() -> None:
    prediction, target, sigma = inputs()
    found = errors()(prediction, target, sigma)
    for sample in range(3):
        expected = torch.nn.functional.mse_loss(prediction[sample], target[sample])
        torch.testing.assert_close(found[sample], expected)


def test_the_error_is_computed_in_float32() -> None:
    prediction, target, sigma = inputs()
    low = errors()(prediction.bfloat16(), target, sigma)
    assert low.dtype == torch.float32
    assert torch.equal(low, errors()(prediction.bfloat16().float(), target, sigma))
    assert errors()(prediction.double(), target, sigma).dtype == torch.float64


def test_a_robust_error_is_square_for_small_and_linear_for_large_differences() -> None:
    target = torch.zeros(2, 1, 1)
    robust = errors("huber", scale=0.1)
    found = robust(torch.tensor([1e-4, 100.0])[:, None, None], target, torch.zeros(2))
    torch.testing.assert_close(found, torch.tensor([1e-8, 2 * 0.1 * (100 - 0.1)]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "schedule, scales",
    [("constant", [0.1, 0.1, 0.1]), ("exponential", [1, 0.1**0.5, 0.1]), ("snr", [1, 0.325, 0.1])],
)
def test_the_scale_follows_the_noise_level(schedule: str, scales: list[float]) -> None:
    prediction, target, _ = inputs()
    found = errors("huber", schedule=schedule)(prediction, target, torch.tensor([0.0, 0.5, 1.0]))
    for sample, scale in enumerate(scales):
        alone = errors("huber", scale=scale)(prediction, target, torch.zeros(3))
        torch.testing.assert_close(found[sample], alone[sample])


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_a_mask_counts_its_tokens_only(name: str) -> None:
    prediction, target, sigma = inputs()
    mask = torch.zeros(3, 5)
    mask[:, :2] = 1
    found = errors(name)(prediction, target, sigma, mask)
    torch.testing.assert_close(found, errors(name)(prediction[:, :2], target[:, :2], sigma))
    everything = errors(name)(prediction, target, sigma, torch.full((3, 5), 0.3))
    torch.testing.assert_close(everything, errors(name)(prediction, target, sigma))


def test_a_floor_gives_masked_tokens_some_weight() -> None:
    prediction, target, sigma = inputs()
    mask = torch.zeros(3, 5)
    mask[:, 0] = 1
    found = errors(floor=0.1)(prediction, target, sigma, mask)
    tokens = (prediction - target).pow(2).mean(dim=2)
    torch.testing.assert_close(found, (tokens[:, 0] + 0.1 * tokens[:, 1:].sum(dim=1)) / 1.4)


def test_an_empty_mask_gives_no_error_and_no_gradient() -> None:
    prediction, target, sigma = inputs()
    prediction.requires_grad_()
    found = errors()(prediction, target, sigma, torch.zeros(3, 5))
    found.sum().backward()
    assert found.tolist() == [0, 0, 0]
    assert not prediction.grad.any()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mes", {}, "did you mean 'mse'"),
        ("mse", {"scale": 1.0}, "`scale` is not an option of the error 'mse'"),
        ("huber", {"scale": 0}, "`scale` must be a number above 0"),
        ("huber", {"schedule": "snrr"}, "did you mean 'snr'"),
        ("mse", {"floor": 2}, "`floor` must be a number of at least 0 and at most 1"),
    ],
)
def test_wrong_errors_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        errors(name, **options)


def test_shapes_that_do_not_fit_are_named() -> None:
    prediction, target, sigma = inputs()
    with pytest.raises(ValueError, match=r"got \(3, 5, 4\), \(3, 4, 4\)"):
        errors()(prediction, target[:, :4], sigma)
    with pytest.raises(ValueError, match=r"`mask` must have the shape \(batch_size, length\) = \(3, 5\)"):
        errors()(prediction, target, sigma, torch.ones(3, 4))
