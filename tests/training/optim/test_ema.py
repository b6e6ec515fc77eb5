"""Averages of weights."""

import pytest
import torch

from diffusers_flux_ext.training import ExponentialMovingAverage


def parameter(value: float, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full((3,), value, dtype=dtype))


def averaged(average: ExponentialMovingAverage) -> float:
    return float(average.averages[0][0])


def test_an_average_of_bfloat16_weights_moves_as_far_as_one_of_float32() -> None:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        weight = parameter(1.0, dtype)
        average = ExponentialMovingAverage([weight], decay=0.998)
        with torch.no_grad():
            weight.fill_(1.5)
        for step in range(5000, 5500):
            average.update(step)
        found.append(averaged(average))
    assert found[0] == found[1] == pytest.approx(1.5 - 0.5 * 0.998**500, abs=1e-5)


def test_fewer_updates_reach_as_far_back() -> None:
    found = []
    for every in (1, 10):
        weight = parameter(0.0)
        average = ExponentialMovingAverage([weight], decay=0.99, every=every)
        with torch.no_grad():
            weight.fill_(1.0)
        for step in range(10_000, 10_100):
            average.update(step)
        found.append(averaged(average))
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_updates_come_at_their_turn_only() -> None:
    weight = parameter(0.0)
    average = ExponentialMovingAverage([weight], decay=0.5, every=3)
    with torch.no_grad():
        weight.fill_(1.0)
    moved = []
    for step in range(6):
        before = averaged(average)
        average.update(step)
        moved.append(averaged(average) != before)
    assert moved == [False, False, True, False, False, True]


def test_the_weights_come_back_bit_for_bit_after_an_error() -> None:
    weight = parameter(0.3, torch.bfloat16)
    average = ExponentialMovingAverage([weight])
    average.averages[0].fill_(0.7)

    def fail() -> None:
        with average.applied():
            assert weight[0].item() == pytest.approx(0.7, abs=2e-3)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert torch.equal(weight.detach(), parameter(0.3, torch.bfloat16).detach())


def test_the_state_has_names_and_goes_into_another_average() -> None:
    first = ExponentialMovingAverage({"a.weight": parameter(1.0), "b": parameter(2.0)})
    second = ExponentialMovingAverage({"a.weight": parameter(0.0), "b": parameter(0.0)})
    second.load(first.state())
    assert list(second.state()) == ["a.weight", "b"]
    assert averaged(second) == 1
    with pytest.raises(ValueError, match="`c` differ"):
        second.load({**first.state(), "c": torch.zeros(3)})
    with pytest.raises(ValueError, match="`b` differ"):
        second.load({**first.state(), "b": torch.zeros(2)})
    assert averaged(second) == 1


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"every": 0}])
def test_wrong_options_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
        ExponentialMovingAverage([parameter(0.0)], **options)
