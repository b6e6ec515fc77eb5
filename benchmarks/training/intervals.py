"""Means with bootstrap intervals, and rank correlation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


RESAMPLES = 2000


def mean(values: np.ndarray) -> float:
    """Return the mean of the first column."""
    return float(values[:, 0].mean())


def spearman(pairs: np.ndarray) -> float:
    """Return the rank correlation of two columns; ties get their mean rank."""
    first, second = (_ranks(pairs[:, column]) for column in (0, 1))
    if not first.std() or not second.std():
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places])


def interval(
    items: Sequence[float] | Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float] = mean
) -> dict[str, float]:
    """Compute a statistic and its 95 % percentile bootstrap interval over items.

    Args:
        items (`Sequence`): One number, or one row of numbers, per item.
        statistic (`Callable`, defaults to the mean): Maps `(items, columns)` to a number.

    Returns:
        `dict[str, float]`: `"value"`, `"low"`, `"high"` and `"items"`.
    """
    rows = np.asarray(items, dtype=float).reshape(len(items), -1)
    rng = np.random.default_rng(0)
    drawn = [statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"value": statistic(rows), "low": float(low), "high": float(high), "items": len(rows)}
