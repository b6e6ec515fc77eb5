"""VRAM budgets of the processes that draw one image together: each keeps its own, and all agree before a step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from .._compat import vram_budget_of
from .._compat.parallel import split_settings
from .ranks import Ranks, ranks_of


UNTILED = 2**31
_TOO_SMALL, _OTHERWISE = 1, 2


def fit_budgets(transformer: torch.nn.Module, batch_size: int, num_image: int, num_text: int) -> None:
    """Before a call of the transformer that is larger than those before it, check that every process has room for it.

    Each process plans its budget again if it must. Processes that share tokens ask each other, since one that stopped
    alone would leave the others waiting in the middle of a layer. The other branch of guidance, which may have been
    refused before this, hears of failures when velocities are exchanged.

    Args:
        transformer (`torch.nn.Module`): The transformer; on one process nothing happens.
        batch_size (`int`): Samples of the call.
        num_image (`int`): Image tokens of all processes together, references included.
        num_text (`int`): Text tokens of all processes together.

    Raises:
        VRAMBudgetError: if this process's budget is too small for its share.
        RuntimeError: on those that share tokens with it, then.
    """
    ranks = ranks_of(transformer)
    if ranks is None or not ranks.has_budgets:
        return
    before, size = ranks.largest or (0, 0, 0), (batch_size, num_image, num_text)
    if all(new <= old for new, old in zip(size, before)):
        return
    ranks.largest = tuple(max(pair) for pair in zip(size, before))
    budget = vram_budget_of({"transformer": transformer})
    error = _failure(lambda: None if budget is None else budget.fit(*size))
    settings = split_settings(transformer)
    if settings is not None:
        _exchange(ranks, settings.group, error, [])
    elif error is not None:
        raise error


def share_budgets(ranks: Ranks, transformer: torch.nn.Module) -> None:
    """Plan the budgets of all processes for their shares of the tokens, when they begin to share them, or a call.

    Args:
        ranks (`Ranks`): The processes.
        transformer (`torch.nn.Module`): The transformer, whose tokens are shared already.

    Raises:
        VRAMBudgetError: if this process's budget is too small.
        RuntimeError: on the others, then.
        ValueError: on all, if weights are stored in different data types, or as for [`share_tiles`].
    """
    budget = vram_budget_of({"transformer": transformer})
    error = _failure(lambda: None if budget is None else budget.fit(0, 0, 0))
    has_budget, storage = _exchange(ranks, ranks.group, error, [budget is not None, _storage(budget)])
    if len(set(storage)) > 1:
        raise ValueError(
            "The processes that draw one image together store weights in different data types, so that their parts "
            "would not be of one model. Give all of them the same `storage_dtype`; budgets in GiB may differ."
        )
    ranks.has_budgets = any(has_budget)
    share_tiles(transformer)


def share_tiles(transformer: torch.nn.Module) -> None:
    """Let all processes decode in the smallest tiles that one of them needs, so that they return the same image.

    Args:
        transformer (`torch.nn.Module`): The transformer; on one process nothing happens.

    Raises:
        ValueError: on all, if some need tiles and others have no budget.
        RuntimeError: on all, if one of them cannot plan again; there it is what went wrong.
    """
    ranks = ranks_of(transformer)
    if ranks is None or not ranks.has_budgets:
        return
    budget = vram_budget_of({"transformer": transformer})
    has_budget, tiles = _exchange(ranks, ranks.group, None, [budget is not None, _tile(budget)])
    smallest = min(tiles)
    if smallest < UNTILED and not all(has_budget):
        raise ValueError(
            f"The autoencoder decodes in tiles of {smallest} pixels on processes with a small VRAM budget, but "
            f"process {has_budget.index(0)} has no budget, so that the processes would return different images. Give "
            f"all of them one."
        )
    if len(set(tiles)) > 1:
        error = _failure(lambda: budget.limit_tile(smallest) if smallest < _tile(budget) else None)
        _exchange(ranks, ranks.group, error, [])


def free_tiles(transformer: torch.nn.Module) -> None:
    """Let a process that draws alone again decode in tiles of its own.

    Args:
        transformer (`torch.nn.Module`): The transformer.
    """
    budget = vram_budget_of({"transformer": transformer})
    if budget is not None and budget.plan.workload.largest_tile is not None:
        budget.limit_tile(None)


def _failure(action: Callable[[], None]) -> Exception | None:
    """Return what an action raises: the others wait for an answer, whatever happens here."""
    try:
        action()
    except Exception as error:
        return error
    return None


def _kind(error: Exception | None) -> int:
    if error is None:
        return 0
    return _TOO_SMALL if isinstance(error, ValueError) else _OTHERWISE


def _exchange(ranks: Ranks, group: Any, error: Exception | None, numbers: Sequence[int]) -> list[list[int]]:
    """Return each of some numbers from all processes, or raise on all of them if one has failed."""
    own = torch.tensor([_kind(error), *numbers], device=ranks.device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    failed, *others = (each.tolist() for each in torch.stack(every).unbind(1))
    if error is not None:
        raise error
    if any(failed):
        processes = [dist.get_global_rank(group, index) for index, value in enumerate(failed) if value]
        raise RuntimeError(
            f"The VRAM budget of process {processes} is too small for this call: its message has the smallest that "
            f"works. Nothing was computed. Give it that, or make a smaller call on all processes."
            if max(failed) == _TOO_SMALL
            else f"Process {processes} failed when it planned its VRAM budget for this call: its message says why. "
            f"Nothing was computed."
        )
    return others


def _tile(budget: Any) -> int:
    return UNTILED if budget is None else budget.plan.vae_tile or UNTILED


def _storage(budget: Any) -> int:
    """Return a number that stands for the data types that a budget stores weights in."""
    stored = {} if budget is None else {each.name: str(each.storage_dtype) for each in budget.plan.components}
    digest = hashlib.blake2b(repr(sorted(filter(_is_stored, stored.items()))).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _is_stored(entry: tuple[str, str]) -> bool:
    return entry[1] != "None"
