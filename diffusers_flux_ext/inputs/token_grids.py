"""Reducing the tokens of an image: keeping evenly spread ones, or merging them."""

from __future__ import annotations

import math

import torch


def evenly_spread(rows: int, columns: int, share: float) -> torch.Tensor:
    """Select a share of a grid's tokens, at least one, evenly spread; larger shares contain the smaller ones.

    Args:
        rows (`int`): Rows of the grid.
        columns (`int`): Columns of the grid.
        share (`float`): In [0, 1].

    Returns:
        `torch.Tensor` of shape `(rows * columns,)`, boolean.
    """
    row, column = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(columns, dtype=torch.float64)
    # The lattice of the plastic number fills the plane evenly in every prefix of its order.
    order = ((row * 0.7548776662466927 + column * 0.5698402909980532) % 1).flatten().argsort()
    chosen = torch.zeros(rows * columns, dtype=torch.bool)
    chosen[order[: max(1, round(share * len(order)))]] = True
    return chosen


def merge_tokens(tokens: torch.Tensor, share: float) -> torch.Tensor:
    """Reduce an image's tokens to a share, each the mean of the tokens nearest to its place.

    Args:
        tokens (`torch.Tensor` of shape `(batch, length, channels)`):
            A square grid row by row; other lengths count as one row.
        share (`float`): In (0, 1]; 1 returns the tokens themselves.

    Returns:
        `torch.Tensor` of shape `(batch, max(1, round(share * length)), channels)`
    """
    length = tokens.shape[1]
    side = math.isqrt(length)
    rows, columns = (side, side) if side * side == length else (1, length)
    kept = evenly_spread(rows, columns, share)
    if bool(kept.all()):
        return tokens
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    nearest = torch.cdist(places, places[kept]).argmin(dim=1)
    members = torch.nn.functional.one_hot(nearest).T.float()
    means = (members / members.sum(dim=1, keepdim=True)).to(tokens.device)
    return (means @ tokens.float()).to(tokens.dtype)
