"""A training step agrees with the reference's: loss and every gradient, for random combinations of methods."""

import os

import pytest
import torch

from benchmarks.support.parity.combinations import combination
from tests.training.reference import our_change, our_step, reference_change, reference_step, without_windows


COUNT = int(os.environ.get("FLUX_EXT_COMBINATIONS", 14))
STEPS = int(os.environ.get("FLUX_EXT_STEPS", 20))


def unguided(seed):
    """A combination without options of inference."""
    for tried in range(seed * 100, seed * 100 + 100):
        call = combination(tried)
        if not {"guidance", "image-to-image", "cache"} & set(call.names):
            return without_windows(call)
    raise LookupError(f"No combination near seed {seed} can be trained.")


@pytest.mark.parametrize("seed", range(COUNT))
def test_loss_and_gradients(seed):
    call = unguided(seed)
    expected_loss, expected = reference_step(call)
    loss, gradients = our_step(call)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-5, msg=lambda text: f"{call.title}: {text}")
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        difference = float((gradients[name] - value).abs().max())
        assert difference <= 1e-4 * largest, f"{call.title}: {name} differs by {difference} of {largest}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize("seed", range(0, COUNT, 5))
def test_weights_after_many_steps(seed, name):
    call = unguided(seed)
    options = {"AdamW": {"lr": 1e-3, "eps": 1e-6}, "SGD": {"lr": 1e-2}}[name]

    def optimizer(parameters):
        return getattr(torch.optim, name)(parameters, **options)

    expected, changes = reference_change(call, optimizer, STEPS), our_change(call, optimizer, STEPS)
    whole = torch.cat([value.flatten() for value in expected.values()])
    differences = torch.cat([(changes[key] - value).flatten() for key, value in expected.items()])
    assert float(whole.norm()) > 0
    assert float(differences.norm()) <= 1e-3 * float(whole.norm()), call.title
