"""What makes batches of a run's samples, from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..assemble import BatchMaker
from ..config.sections import TrainingConfig
from ..distill import DistillationBatchMaker
from ..draws import Draws
from ..losses import draw_levels, levels
from ..losses.levels import ShiftedLevels
from .model import DTYPES
from .templates import ConditionTemplate


def drawn_levels(config: TrainingConfig) -> ShiftedLevels:
    """Return the distribution of noise levels, or of a student's steps."""
    if config.distill is not None:
        # A student's steps are equally likely.
        return levels("uniform")
    return levels(config.loss.levels.name, **config.loss.levels.options)


def make_batches(
    config: TrainingConfig, drawn: ShiftedLevels, guided: bool, templates: Sequence[ConditionTemplate]
) -> BatchMaker:
    """Return what makes batches of samples.

    Args:
        config (`TrainingConfig`): The configuration.
        drawn (`ShiftedLevels`): As of [`drawn_levels`].
        guided (`bool`): Whether the transformer takes an embedded guidance.
        templates (`Sequence[ConditionTemplate]`): The conditions.

    Returns:
        `BatchMaker`
    """
    shared: dict[str, Any] = {
        "draws": Draws(config.seed),
        "levels": partial(_draw, drawn, config.loss.stratified),
        "dtype": DTYPES[config.model.dtype],
        "guidance": config.model.guidance if guided else None,
        "condition_dropout": [template.section.dropout for template in templates],
    }
    if config.distill is None:
        return BatchMaker(**shared)
    return DistillationBatchMaker(**shared, method=config.distill.method)


def _draw(
    drawn: Any, stratified: bool, draws: Draws, update: int, positions: Sequence[int], total: int, tokens: int
) -> torch.Tensor:
    return draw_levels(drawn, draws, update, positions, total, tokens, stratified).float()
