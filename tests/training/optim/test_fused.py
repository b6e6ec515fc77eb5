"""Steps inside of the backward pass equal ordinary ones."""

import importlib.util

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from diffusers_flux_ext.training.optim import FusedBackward, OptimizerSettings, build_optimizer, set_rates


def tiny_model(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)).to(dtype)


def run(fused: bool, name: str, rounding: str | None) -> torch.nn.Module:
    model = tiny_model(torch.float32 if rounding is None else torch.bfloat16)
    settings = OptimizerSettings(name, lr=1e-2, rounding=rounding)
    optimizers = build_optimizer(model.named_parameters(), settings)
    backward = FusedBackward(optimizers) if fused else None
    for update in range(4):
        set_rates(optimizers, 1 / (update + 1))
        inputs = torch.randn(5, 8, generator=torch.Generator().manual_seed(update)).to(model[0].weight.dtype)
        model(inputs).float().pow(2).mean().backward()
        if backward is not None:
            assert all(parameter.grad is None for parameter in model.parameters())
            backward.step()
            continue
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    "name, rounding", [("adamw", None), ("adafactor", None), ("adamw", "stochastic"), ("adamw", "kahan")]
)
def test_fused_steps_equal_ordinary_ones(name: str, rounding: str | None) -> None:
    fused, ordinary = run(True, name, rounding), run(False, name, rounding)
    start = tiny_model(fused[0].weight.dtype)
    for one, two, before in zip(fused.parameters(), ordinary.parameters(), start.parameters()):
        assert torch.equal(one, two)
        assert not torch.equal(one, before)


def test_muon_and_its_rest_are_fused() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    fused, ordinary = run(True, "muon", None), run(False, "muon", None)
    for one, two in zip(fused.parameters(), ordinary.parameters()):
        assert torch.equal(one, two)


@pytest.mark.parametrize("rounding", [None, "stochastic"])
def test_a_weight_that_is_used_twice_under_checkpointing_is_stepped_once(rounding: str | None) -> None:
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 8).to(torch.float32 if rounding is None else torch.bfloat16)
        (optimizer,) = build_optimizer(model.named_parameters(), OptimizerSettings(lr=1e-2, rounding=rounding))
        backward = FusedBackward([optimizer]) if fused else optimizer
        for _ in range(2):
            hidden = checkpoint(model, torch.ones(2, 8, dtype=model.weight.dtype), use_reentrant=False)
            checkpoint(model, hidden.tanh(), use_reentrant=False).sum().backward()
            backward.step()
            optimizer.zero_grad()
        found.append(model.weight.detach())
    assert torch.equal(*found)


def test_8_bit_states_are_fused() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    fused, ordinary = run(True, "adamw8bit", None), run(False, "adamw8bit", None)
    for one, two in zip(fused.parameters(), ordinary.parameters()):
        assert torch.equal(one, two)


def test_closing_leaves_the_steps_to_the_optimizer() -> None:
    model = tiny_model(torch.float32)
    backward = FusedBackward(build_optimizer(model.named_parameters(), OptimizerSettings()))
    backward.close()
    before = model[0].weight.detach().clone()
    model(torch.ones(1, 8)).sum().backward()
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.grad is not None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gradient_accumulation_steps": 2}, "set `gradient_accumulation_steps` to 1, got 2"),
        ({"max_grad_norm": 1.0}, "set `max_grad_norm` to None, got 1.0"),
    ],
)
def test_what_needs_all_gradients_is_refused(options: dict, message: str) -> None:
    optimizers = build_optimizer(tiny_model(torch.float32).named_parameters(), OptimizerSettings())
    with pytest.raises(ValueError, match=message):
        FusedBackward(optimizers, **options)


@pytest.mark.parametrize("rounding", [None, "masters"])
def test_optimizers_with_a_common_state_are_refused(rounding: str | None) -> None:
    if importlib.util.find_spec("schedulefree") is None:
        pytest.skip("schedulefree is not installed")
    model = tiny_model(torch.float32 if rounding is None else torch.bfloat16)
    optimizers = build_optimizer(model.named_parameters(), OptimizerSettings("schedule_free", rounding=rounding))
    with pytest.raises(ValueError, match="not known to be right for AdamWScheduleFree"):
        FusedBackward(optimizers)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers = build_optimizer(tiny_model(torch.float32).named_parameters(), OptimizerSettings())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="works in one process, got 2"):
        FusedBackward(optimizers)
