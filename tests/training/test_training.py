"""Noise levels, averages, checkpoints, learning rate and the loss."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from diffusers_flux_ext.denoise import PromptEmbeds
from diffusers_flux_ext.sequence import AttentionRule, Contribution, TokenGroup
from diffusers_flux_ext.training import (
    ExponentialMovingAverage,
    atomic_path,
    flow_matching_loss,
    load_checkpoint,
    sample_timesteps,
    save_checkpoint,
    warmup_flat_cosine,
)


def tiny_transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    )


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).pow(2).mean().backward()
        optimizer.step()


def test_timesteps_follow_the_shift_and_the_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = sample_timesteps(4096, shift=1.0, generator=generator)
    shifted = sample_timesteps(4096, shift=3.0, generator=generator)
    assert abs(float(plain.median()) - 0.5) < 0.01
    assert abs(float(shifted.median()) - 0.75) < 0.01
    assert 0 < float(shifted.min())
    assert float(shifted.max()) < 1
    again = [sample_timesteps(8, 2.0, 0.3, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)


def test_timesteps_are_spread_over_the_batch() -> None:
    timesteps = sample_timesteps(16, shift=1.0, generator=torch.Generator().manual_seed(1)).sort().values
    slices = torch.special.ndtr(torch.logit(timesteps)) * 16
    assert torch.equal(slices.floor(), torch.arange(16.0))


@pytest.mark.parametrize("arguments", [(0,), (4, 0.0), (4, 1.0, 1.5)])
def test_wrong_timestep_options_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        sample_timesteps(*arguments)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    factors = [warmup_flat_cosine(step, 1000, warmup=100, flat_until=0.4, final=0.02) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99:401] == pytest.approx([1.0] * 302)
    assert all(after < before for before, after in zip(factors[401:], factors[402:]))
    assert factors[1000] == pytest.approx(0.02)
    with pytest.raises(ValueError, match="flat_until"):
        warmup_flat_cosine(0, 10, flat_until=1.0)


def test_the_average_lags_and_is_applied_only_inside_of_the_context() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = ExponentialMovingAverage([weight], decay=0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(step=10_000)
    with average.applied():
        torch.testing.assert_close(weight.detach(), torch.full((3,), 0.1))
    torch.testing.assert_close(weight.detach(), torch.ones(3))
    with pytest.raises(ValueError, match="decay"):
        ExponentialMovingAverage([weight], decay=1.0)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    unbroken, optimizer = fresh()
    train(unbroken, optimizer, 0, 6)
    first, optimizer = fresh()
    train(first, optimizer, 0, 3)
    save_checkpoint(tmp_path / "run.safetensors", 3, dict(first.named_parameters()), [optimizer])
    second, optimizer = fresh()
    step = load_checkpoint(tmp_path / "run.safetensors", dict(second.named_parameters()), [optimizer])
    assert step == 3
    train(second, optimizer, step, 6)
    for name, parameter in second.named_parameters():
        assert torch.equal(parameter, unbroken.get_parameter(name))


def test_a_missing_checkpoint_is_step_0_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    weights = {"weight": torch.ones(2)}
    assert load_checkpoint(tmp_path / "none.safetensors", weights) == 0
    save_checkpoint(tmp_path / "a.safetensors", 1, {"other": torch.ones(2)})
    with pytest.raises(ValueError, match="does not belong to this model"):
        load_checkpoint(tmp_path / "a.safetensors", weights)
    with pytest.raises(ValueError, match="are reserved"):
        save_checkpoint(tmp_path / "b.safetensors", 1, {"optimizer.x": torch.ones(2)})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("first")

    def interrupted() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("sec")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert target.read_text() == "first"


def test_the_loss_falls_and_conditions_reach_it() -> None:
    transformer = tiny_transformer()
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    prompt = PromptEmbeds(random(2, 3, 12), random(2, 6), torch.zeros(3, 3))
    entity = TokenGroup("entity_0", random(2, 4, 12), torch.zeros(4, 3))
    inside = torch.rand(2, 5, generator=generator) > 0.5
    rules = [
        AttentionRule("entity_0", "target", inside[:, None, :]),
        AttentionRule("target", "entity_0", inside[:, :, None]),
        AttentionRule("entity_0", "text/*", False),
        AttentionRule("text/*", "entity_0", False),
    ]
    inputs = (random(2, 5, 8), random(2, 5, 8), torch.tensor([0.2, 0.9]), torch.zeros(5, 3), prompt)
    contributions = [Contribution(text=[entity], rules=rules)]
    plain = flow_matching_loss(transformer, *inputs)
    conditioned = flow_matching_loss(transformer, *inputs, contributions=contributions)
    assert plain.shape == conditioned.shape == (2,)
    assert not torch.allclose(plain, conditioned)

    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-2)
    for _ in range(20):
        loss = flow_matching_loss(transformer, *inputs, contributions=contributions).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * conditioned.mean().item()
