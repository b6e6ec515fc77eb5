"""Weights of 16 bits move as those of float32 do, under every rule and optimizer."""

import importlib.util

import pytest
import torch

from diffusers_flux_ext.training.checkpoint import pack_state, unpack_state
from diffusers_flux_ext.training.optim import (
    OptimizerSettings,
    RoundedOptimizer,
    averaged_weights,
    build_optimizer,
    round_stochastically,
)
from diffusers_flux_ext.training.optim.rules import RULES


# Neighbours of 0.02 in bfloat16 are this far apart.
GAP = 2.0**-13
BY_PARAMETER = ["adamw", "adamw8bit", "adafactor", "lion"]
AT_ONCE = ["prodigy", "schedule_free"]
MODULES = {
    "adamw8bit": "bitsandbytes",
    "lion": "lion_pytorch",
    "prodigy": "prodigyopt",
    "schedule_free": "schedulefree",
}


def needs(name: str) -> None:
    module = MODULES.get(name, "torch")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def made(
    weight: torch.nn.Parameter, name: str = "adamw", rounding: str | None = None, **options: object
) -> torch.optim.Optimizer:
    settings = OptimizerSettings(name, **{"lr": 1e-5, "weight_decay": 0.0, "rounding": rounding, **options})
    (optimizer,) = build_optimizer({"weight": weight}, settings)
    return optimizer


def step(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, update: int) -> None:
    """Step with a gradient that has a direction and some noise."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(update))
    weight.grad = (1 + 0.1 * noise).to(weight.dtype)
    optimizer.step()


def moved(dtype: torch.dtype, name: str = "adamw", rounding: str | None = None, **options: object) -> torch.Tensor:
    """Return how far weights of 0.02 moved in 100 steps."""
    weight = torch.nn.Parameter(torch.full((64, 64), 0.02, dtype=dtype))
    before = weight.detach().clone()
    optimizer = made(weight, name, rounding, **options)
    for update in range(100):
        step(optimizer, weight, update)
    with averaged_weights([optimizer]):
        return weight.detach().float() - before.float()


def test_plain_bfloat16_does_not_move() -> None:
    weight = torch.nn.Parameter(torch.full((64,), 0.02, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0)
    for update in range(100):
        step(optimizer, weight, update)
    assert torch.equal(weight.detach(), torch.full((64,), 0.02, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", BY_PARAMETER)
@pytest.mark.parametrize("rounding", RULES)
def test_weights_move_as_in_float32(rounding: str, name: str) -> None:
    needs(name)
    expected, found = moved(torch.float32, name), moved(torch.bfloat16, name, rounding)
    assert abs(float(expected.mean())) == pytest.approx(1e-3, rel=0.1)
    # Stochastic rounding is right on average over 4096 weights; the others are right for each, to half a gap.
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.02 if rounding == "stochastic" else 0.06)
    if rounding != "stochastic":
        assert float((found - expected).abs().max()) <= 0.55 * GAP


@pytest.mark.parametrize("name", AT_ONCE)
@pytest.mark.parametrize("rounding", ["kahan", "masters"])
def test_optimizers_with_a_common_state_move_too(rounding: str, name: str) -> None:
    needs(name)
    options = {"lr": 1.0, "options": {"d0": 1e-5}} if name == "prodigy" else {"lr": 2e-5}
    expected = moved(torch.float32, name, **options)
    found = moved(torch.bfloat16, name, rounding, **options)
    assert abs(float(expected.mean())) > 4 * GAP
    assert float((found - expected).abs().max()) <= 0.02 * abs(float(expected.mean())) + 0.55 * GAP


@pytest.mark.parametrize("rounding", RULES)
def test_parameters_of_float32_beside_them_are_stepped_as_they_are(rounding: str) -> None:
    def run(rounded: bool) -> torch.Tensor:
        full = torch.nn.Parameter(torch.full((3,), 0.5))
        low = torch.nn.Parameter(torch.full((3,), 0.5, dtype=torch.bfloat16))
        parameters = {"full": full, "low": low} if rounded else {"full": full}
        settings = OptimizerSettings(rounding=rounding if rounded else None)
        optimizers = build_optimizer(parameters, settings)
        for update in range(3):
            low.grad = torch.ones_like(low)
            step(optimizers[0], full, update)
        return full.detach()

    assert torch.equal(run(True), run(False))


def test_stochastic_rounding_is_right_on_average_and_leaves_what_fits() -> None:
    value = 0.02 + 0.3 * GAP
    low = torch.tensor(value).bfloat16().float()
    rounded = round_stochastically(torch.full((100_000,), value), torch.Generator().manual_seed(0)).float()
    assert sorted(set(((rounded - low) / GAP).tolist())) == [0, 1]
    assert float(rounded.double().mean()) == pytest.approx(value, abs=0.01 * GAP)
    fitting = torch.tensor([0.0, -0.0, 1.5, -3.0, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically(fitting).float(), fitting)
    assert round_stochastically(torch.tensor([float("nan")])).isnan().all()
    negative = round_stochastically(torch.full((100_000,), -value), torch.Generator().manual_seed(0)).float()
    assert torch.equal(negative, -rounded)


def test_stochastic_rounding_depends_on_seed_name_and_update_alone() -> None:
    first, again = moved(torch.bfloat16, rounding="stochastic"), moved(torch.bfloat16, rounding="stochastic")
    assert torch.equal(first, again)
    assert not torch.equal(first, moved(torch.bfloat16, rounding="stochastic", seed=1))


@pytest.mark.parametrize("rounding", RULES)
@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_resumed_run_equals_an_unbroken_one(name: str, rounding: str) -> None:
    needs(name)

    def start() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 4096).bfloat16())
        return weight, made(weight, name, rounding, lr=1e-4)

    unbroken, optimizer = start()
    for update in range(6):
        step(optimizer, unbroken, update)
    first, optimizer = start()
    for update in range(3):
        step(optimizer, first, update)
    second, resumed = start()
    second.data.copy_(first.data)
    tensors: dict[str, torch.Tensor] = {}
    resumed.load_state_dict(unpack_state(pack_state(optimizer.state_dict(), tensors, "0"), tensors))
    for update in range(3, 6):
        step(resumed, second, update)
    assert torch.equal(second, unbroken)


def test_states_are_float32() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = made(weight, rounding="kahan")
    step(optimizer, weight, 0)
    state = optimizer.state_dict()["state"][0]
    assert state["exp_avg"].dtype == torch.float32
    assert state["rounding"].dtype == torch.bfloat16


def test_states_of_another_rule_are_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = made(weight, rounding="masters")
    with pytest.raises(ValueError, match="Use the rule of the first run"):
        made(weight, rounding="stochastic").load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="of 1 parameters something is kept, got 0"):
        optimizer.load_state_dict(made(weight, rounding="stochastic").state_dict())


def test_the_learning_rate_of_a_group_counts_and_gradients_are_cleared() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = made(weight, rounding="masters")
    optimizer.param_groups[0]["lr"] = 0.0
    step(optimizer, weight, 0)
    assert torch.equal(weight.detach(), torch.ones(8, dtype=torch.bfloat16))
    optimizer.zero_grad()
    assert weight.grad is None


def test_float16_has_masters() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.float16))
    optimizer = made(weight, rounding="masters")
    for update in range(100):
        step(optimizer, weight, update)
    torch.testing.assert_close(weight.detach().float(), torch.full((8,), 1 - 1e-3), atol=6e-4, rtol=0)


def test_a_closure_is_called_with_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = made(weight, rounding="masters", lr=0.1)

    def closure() -> float:
        loss = weight.float().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 8
    assert float(weight.detach()[0]) == pytest.approx(0.9, abs=4e-3)


@pytest.mark.parametrize(
    "dtype, rounding, message",
    [
        (torch.bfloat16, None, "are bfloat16, in which small steps are rounded away: `weight`"),
        (torch.float16, None, "choose a rule of rounding: stochastic, kahan, masters"),
        (torch.float32, "kahan", "no trained parameter is"),
        (torch.float16, "stochastic", "Choose 'kahan' or 'masters'"),
    ],
)
def test_wrong_data_types_are_refused(dtype: torch.dtype, rounding: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(torch.nn.Parameter(torch.ones(2, dtype=dtype)), rounding=rounding)


def test_sharded_parameters_are_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    weight.to_local = lambda: weight.data
    with pytest.raises(ValueError, match="sharded over processes: `weight`"):
        made(weight, rounding="kahan")


def test_any_optimizer_of_torch_can_be_wrapped() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = RoundedOptimizer(
        [{"params": [weight]}], lambda groups: torch.optim.RMSprop(groups, lr=1e-4), "masters", {weight: "weight"}
    )
    assert optimizer.param_groups[0]["lr"] == 1e-4
    for update in range(200):
        step(optimizer, weight, update)
    assert float(weight.detach().float().max()) < 1
