"""`FluxFlowMatchScheduler` without the reference package: grids, diffusers' behaviour, configs, training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_flux_ext.schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler


FLUX_DEV = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
STOCK_CONFIGS = [
    {},
    {"shift": 3.0},
    FLUX_DEV,
    {**FLUX_DEV, "time_shift_type": "linear"},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"shift": 3.0, "use_exponential_sigmas": True},
    {"shift": 3.0, "shift_terminal": 0.02},
    {"shift": 3.0, "invert_sigmas": True},
]
OWN_CONFIGS = [{}, {"shift": 6.5}, {"base_grid": "diffusers", "use_dynamic_shifting": True}]
CALLS: list[dict[str, Any]] = [
    {"num_inference_steps": 2},
    {"num_inference_steps": 7},
    {"sigmas": np.linspace(1.0, 1 / 9, 9)},
    {"num_inference_steps": 3, "sigmas": [1.0, 0.6, 0.1]},
    {"timesteps": [900.0, 500.0, 20.0]},
    {"sigmas": [0.9, 0.4], "timesteps": [900.0, 300.0]},
]


def stock_pair(config: dict[str, Any]) -> tuple[FlowMatchEulerDiscreteScheduler, FluxFlowMatchScheduler]:
    return FlowMatchEulerDiscreteScheduler(**config), FluxFlowMatchScheduler(
        **{"shift": 1.0} | config, base_grid="diffusers"
    )


def parameters(scheduler: FlowMatchEulerDiscreteScheduler) -> dict[str, Any]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def assert_same_schedule(one: FlowMatchEulerDiscreteScheduler, other: FlowMatchEulerDiscreteScheduler) -> None:
    assert torch.equal(one.timesteps, other.timesteps)
    assert torch.equal(one.sigmas, other.sigmas)


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("config", STOCK_CONFIGS, ids=str)
def test_diffusers_grid_is_the_stock_scheduler(config: dict[str, Any], call: dict[str, Any]) -> None:
    stock, ours = stock_pair(config)
    assert_same_schedule(stock, ours)
    call = {**call, "mu": 0.8 if config.get("use_dynamic_shifting") else None}
    stock.set_timesteps(**call)
    ours.set_timesteps(**call)
    assert_same_schedule(stock, ours)


@pytest.mark.parametrize("stochastic", [False, True])
def test_diffusers_steps_are_the_stock_steps(stochastic: bool) -> None:
    stock, ours = stock_pair({"shift": 3.0, "stochastic_sampling": stochastic})
    velocity, start = torch.randn(2, 2, 6, 4).unbind()
    results = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(4)
        sample, generator = start, torch.Generator().manual_seed(0)
        for timestep in scheduler.timesteps:
            sample = scheduler.step(velocity, timestep, sample, generator=generator, return_dict=False)[0]
        results.append(sample)
    assert torch.equal(*results)
    assert not torch.equal(results[0], start)


def test_per_token_timesteps_are_the_stock_ones() -> None:
    stock, ours = stock_pair({"shift": 3.0})
    velocity, sample = torch.randn(2, 2, 6, 4).unbind()
    per_token = torch.linspace(300, 900, 6).repeat(2, 1)
    results = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(4)
        step = scheduler.step(velocity, scheduler.timesteps[0], sample, per_token_timesteps=per_token)
        results.append(step.prev_sample)
    assert torch.equal(*results)


def test_stock_schedule_is_kept_in_scale_noise() -> None:
    stock, ours = stock_pair({"shift": 3.0})
    sample, noise = torch.randn(2, 2, 6, 4).unbind()
    for scheduler in (stock, ours):
        scheduler.set_timesteps(4)
    timesteps = stock.timesteps[1:3]
    assert torch.equal(stock.scale_noise(sample, timesteps, noise), ours.scale_noise(sample, timesteps, noise))


@pytest.mark.parametrize("steps", [2, 9])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_default_grid_by_its_formula(steps: int, strength: float) -> None:
    scheduler = FluxFlowMatchScheduler()
    scheduler.set_timesteps(steps, denoising_strength=strength)
    end = 0.003 / 1.002
    base = np.linspace(end + (1 - end) * strength, end, steps)
    np.testing.assert_allclose(scheduler.sigmas[:-1], 3 * base / (1 + 2 * base), rtol=1e-6)
    assert scheduler.sigmas[-1] == 0
    np.testing.assert_allclose(scheduler.timesteps, scheduler.sigmas[:-1] * 1000, rtol=1e-6)


@pytest.mark.parametrize("config", [{}, {"use_dynamic_shifting": True}, {"use_karras_sigmas": True}], ids=str)
def test_base_sigmas_passed_back_give_the_same_schedule(config: dict[str, Any]) -> None:
    direct, passed = FluxFlowMatchScheduler(**config), FluxFlowMatchScheduler(**config)
    direct.set_timesteps(6, denoising_strength=0.7, mu=0.9)
    passed.set_timesteps(sigmas=passed.base_sigmas(6, 0.7), mu=0.9)
    assert_same_schedule(direct, passed)


def test_explicit_sigmas_are_shifted_and_not_replaced() -> None:
    scheduler = FluxFlowMatchScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=1.1)
    assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.0]


def test_shift_of_a_call_lasts_for_the_call() -> None:
    scheduler, other = FluxFlowMatchScheduler(), FluxFlowMatchScheduler(shift=6.5)
    scheduler.set_timesteps(5, shift=6.5)
    other.set_timesteps(5)
    assert_same_schedule(scheduler, other)
    assert scheduler.shift == 3.0
    other.set_timesteps(5, shift=3.0)
    scheduler.set_timesteps(5)
    assert_same_schedule(scheduler, other)


def test_strength_shortens_the_diffusers_grid_too() -> None:
    scheduler = FluxFlowMatchScheduler(base_grid="diffusers", shift=1.0)
    scheduler.set_timesteps(5, denoising_strength=0.5)
    np.testing.assert_allclose(scheduler.sigmas, [*np.linspace(0.5005, 0.001, 5), 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_inference_steps": 0}, "at least 1"),
        ({}, "at least 1"),
        ({"num_inference_steps": 4, "denoising_strength": 0.0}, r"\(0, 1\]"),
        ({"num_inference_steps": 4, "denoising_strength": 1.5}, r"\(0, 1\]"),
        ({"sigmas": [1.0, 0.5], "denoising_strength": 0.5}, "base_sigmas"),
        ({"num_inference_steps": 4, "shift": 0.0}, "above 0"),
    ],
    ids=str,
)
def test_impossible_calls_raise(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FluxFlowMatchScheduler().set_timesteps(**call)


def test_static_shift_with_dynamic_shifting_raises() -> None:
    with pytest.raises(ValueError, match="Pass `mu`"):
        FluxFlowMatchScheduler(use_dynamic_shifting=True).set_timesteps(4, mu=0.8, shift=2.0)


@pytest.mark.parametrize(("config", "message"), [({"base_grid": "flux"}, "base_grid"), ({"shift": -1.0}, "above 0")])
def test_impossible_configs_raise(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FluxFlowMatchScheduler(**config)


@pytest.mark.parametrize("config", OWN_CONFIGS, ids=str)
def test_the_stock_scheduler_is_compatible(config: dict[str, Any]) -> None:
    ours = FluxFlowMatchScheduler(**config)
    assert ours.compatibles == [FlowMatchEulerDiscreteScheduler]
    stock = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert parameters(FluxFlowMatchScheduler.from_config(stock.config)) == parameters(ours)


@pytest.mark.parametrize("config", OWN_CONFIGS, ids=str)
def test_save_and_load(tmp_path: Path, config: dict[str, Any]) -> None:
    saved = FluxFlowMatchScheduler(**config)
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "FluxFlowMatchScheduler"
    loaded = FluxFlowMatchScheduler.from_pretrained(tmp_path)
    assert parameters(loaded) == parameters(saved)
    # As in stock: nothing that was loaded counts as left at its default.
    assert "_use_default_values" not in loaded.config
    for scheduler in (saved, loaded):
        scheduler.set_timesteps(5, mu=0.8)
    assert_same_schedule(saved, loaded)


def test_stock_config_gives_the_diffsynth_grid(tmp_path: Path) -> None:
    stock = FlowMatchEulerDiscreteScheduler(**FLUX_DEV)
    stock.save_pretrained(tmp_path)
    expected = FluxFlowMatchScheduler()
    expected.set_timesteps(8)
    for ours in (FluxFlowMatchScheduler.from_config(stock.config), FluxFlowMatchScheduler.from_pretrained(tmp_path)):
        ours.set_timesteps(8, mu=0.8)
        assert_same_schedule(ours, expected)
        assert ours.config.max_shift == 1.15


@pytest.mark.parametrize("config", [FLUX_DEV, {}], ids=str)
def test_stock_config_can_be_kept(config: dict[str, Any]) -> None:
    stock = FlowMatchEulerDiscreteScheduler(**config)
    ours = FluxFlowMatchScheduler.from_config(stock.config, base_grid="diffusers")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=0.8)
    assert_same_schedule(stock, ours)


@pytest.mark.parametrize("config", [{}, {"base_grid": "diffusers", **FLUX_DEV}], ids=str)
def test_there_and_back_through_the_stock_class(config: dict[str, Any]) -> None:
    ours = FluxFlowMatchScheduler(**config)
    stock = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    for name in ("shift", "use_dynamic_shifting", "max_shift"):
        assert stock.config[name] == ours.config[name]
    assert parameters(FluxFlowMatchScheduler.from_config(stock.config)) == parameters(ours)


def test_add_noise_takes_the_nearest_timestep() -> None:
    scheduler = FluxFlowMatchScheduler()
    scheduler.set_timesteps(10)
    sample, noise = torch.randn(2, 3, 6, 4).unbind()
    noisy = scheduler.add_noise(sample, noise, scheduler.timesteps[[2, 5, 9]] + 1e-2)
    for index, (step, row) in enumerate(zip([2, 5, 9], noisy)):
        sigma = scheduler.sigmas[step]
        torch.testing.assert_close(row, (1 - sigma) * sample[index] + sigma * noise[index])


def test_add_noise_keeps_dtype_and_refuses_a_wrong_batch() -> None:
    scheduler = FluxFlowMatchScheduler()
    sample = torch.ones(2, 4, dtype=torch.bfloat16)
    assert scheduler.add_noise(sample, sample, 500.0).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="3 values for 2 samples"):
        scheduler.add_noise(sample, sample, torch.tensor([1.0, 2.0, 3.0]))


def test_loop_may_start_at_a_rounded_timestep() -> None:
    scheduler = FluxFlowMatchScheduler()
    scheduler.set_timesteps(7, denoising_strength=0.6)
    sample, velocity = torch.randn(2, 1, 4).unbind()
    rounded = scheduler.timesteps[0].bfloat16()
    assert rounded != scheduler.timesteps[0]
    moved = scheduler.step(velocity, rounded, sample).prev_sample
    torch.testing.assert_close(moved, sample + (scheduler.sigmas[1] - scheduler.sigmas[0]) * velocity)


def test_training_weights_have_their_documented_form() -> None:
    scheduler = FluxFlowMatchScheduler()
    weights = scheduler.training_weights(scheduler.timesteps)
    assert weights.shape == (1000,)
    assert weights.min() == 0
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    assert abs(scheduler.timesteps[weights.argmax()] - 500) < 2
    scheduler.set_timesteps(20)
    assert scheduler.training_weights(scheduler.timesteps).min() > 0


def test_training_weights_need_several_noise_levels() -> None:
    scheduler = FluxFlowMatchScheduler()
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match="several noise levels"):
        scheduler.training_weights(500.0)


def test_training_target_is_the_velocity() -> None:
    scheduler = FluxFlowMatchScheduler()
    sample, noise = torch.randn(2, 2, 4).unbind()
    noisy = scheduler.add_noise(sample, noise, 700.0)
    sigma = scheduler.sigmas[scheduler.index_for_timestep(700.0)]
    torch.testing.assert_close(noisy - sigma * scheduler.training_target(sample, noise), sample)
