"""The training loop that all stages share: learning rate, averaged weights, checkpoints, progress bar."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from tqdm import tqdm

from diffusers_flux_ext.training import (
    ExponentialMovingAverage,
    load_checkpoint,
    save_checkpoint,
    warmup_flat_cosine,
)

from .settings import Draws, Settings


logger = logging.getLogger(__name__)


def train_stage(
    settings: Settings,
    stage: str,
    total: int,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    loss_of: Callable[[int, Draws], torch.Tensor],
    flat_until: float = 0.4,
    ema_decay: float = 0.998,
) -> ExponentialMovingAverage:
    """Train some parameters, resuming from the last checkpoint if there is one.

    Args:
        settings (`Settings`): The run.
        stage (`str`): Name of the stage.
        total (`int`): Number of steps.
        parameters (`Mapping[str, torch.nn.Parameter]`): What is trained.
        optimizers (`Sequence[torch.optim.Optimizer]`): Their groups' learning rates are the peaks.
        loss_of (`Callable`): Takes the step's number and draws, returns the loss.
        flat_until (`float`, defaults to 0.4): Share of the steps before the learning rate falls.
        ema_decay (`float`, defaults to 0.998): Decay of the averaged weights.

    Returns:
        `ExponentialMovingAverage`: the averaged weights.
    """
    average = ExponentialMovingAverage(parameters.values(), ema_decay)
    kept = {**parameters, **{f"average.{name}": value for name, value in zip(parameters, average.averages)}}
    start = load_checkpoint(settings.checkpoint(stage), kept, optimizers)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    losses: list[float] = []
    with tqdm(total=total, initial=start, desc=stage) as progress:
        for step in range(start, total):
            factor = warmup_flat_cosine(step, total, warmup=min(100, total // 10 + 1), flat_until=flat_until)
            _set_learning_rates(optimizers, peaks, factor)
            losses.append(_update(parameters, optimizers, loss_of(step, Draws.of(settings, stage, step))))
            average.update(step)
            progress.update()
            progress.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == total:
                save_checkpoint(settings.checkpoint(stage), step + 1, kept, optimizers)
    _report(stage, losses)
    return average


def _set_learning_rates(
    optimizers: Sequence[torch.optim.Optimizer], peaks: Sequence[Sequence[float]], factor: float
) -> None:
    for optimizer, rates in zip(optimizers, peaks):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * factor


def _update(
    parameters: Mapping[str, torch.nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    loss: torch.Tensor,
) -> float:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _report(stage: str, losses: Sequence[float]) -> None:
    if losses:
        part = max(1, len(losses) // 5)
        first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
        logger.info("%s: mean loss of the first fifth %.4f, of the last fifth %.4f", stage, first, last)
