"""The fastest setting that fits a budget of memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .needs import Needs, Setting


GB = 10**9
OVERHEAD = 0.6 * GB
"""The context and the libraries' workspaces of a GPU, as an estimate."""

SHARE = 0.95
"""How much of the rest can be used: the allocator's blocks do not fit into each other."""

_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB)\s*", re.IGNORECASE)


def read_budget(text: str) -> int:
    """Read an amount of memory.

    Args:
        text (`str`): Such as `"12GB"` (of 10 ** 9 bytes) or `"16 GiB"` (of 2 ** 30).

    Returns:
        `int`: bytes.

    Raises:
        ValueError: if it is none.
    """
    found = _BUDGET.fullmatch(text)
    if found is None or float(found.group(1)) <= 0:
        raise ValueError(f"got {text!r}; expected an amount of memory such as '12GB' or '16GiB'")
    return round(float(found.group(1)) * (GB if found.group(2).upper() == "GB" else 2**30))


@dataclass(frozen=True)
class MemoryPlan:
    """A setting, and what it takes.

    Args:
        budget (`int`): Bytes of the GPU.
        setting (`Setting`): The setting.
        training (`Needs`): What a training step takes.
        encoding (`int`): The peak while samples are encoded.
    """

    budget: int
    setting: Setting
    training: Needs
    encoding: int

    def describe(self) -> str:
        """Return the setting and the predicted peaks, in words."""
        setting, needs = self.setting, self.training
        every = {0: "off", 1: "all blocks"}.get(setting.checkpointing, f"one of {setting.checkpointing} blocks")
        parts = ", ".join(
            f"{name} {getattr(needs, name) / GB:.1f}"
            for name in ("weights", "trained", "encoders", "activations", "working")
        )
        return (
            f"For {self.budget / GB:.1f} GB: storage {setting.storage or 'as it is'}, checkpointing {every}, batches "
            f"of {setting.batch_size}, {'with' if setting.cache else 'without'} a cache\n"
            f"Predicted peak while encoding: {self.encoding / GB:.1f} GB\n"
            f"Predicted peak while training: {needs.peak / GB:.1f} GB ({parts})"
        )


def choose_setting(
    budget: int,
    needs: Callable[[Setting], Needs],
    encoding: int,
    *,
    storages: Sequence[str | None] = (None, "fp8", "nf4"),
    batch_sizes: Sequence[int] = (1,),
    caches: Sequence[bool] = (False, True),
) -> MemoryPlan:
    """Choose the setting that computes least among those that fit.

    Weights stay as they are before they are rounded, blocks run once before they run twice, encoders stay before they
    go, and batches are as large as they may be.

    Args:
        budget (`int`): Bytes of the GPU.
        needs (`Callable`): Predicts what a setting takes.
        encoding (`int`): The peak while samples are encoded.
        storages (`Sequence[str]`): Ways of storing the blocks that may be taken, best first.
        batch_sizes (`Sequence[int]`): Batch sizes that may be taken.
        caches (`Sequence[bool]`): Whether there may be a cache, or none.

    Returns:
        `MemoryPlan`

    Raises:
        ValueError: if nothing fits; the message has the smallest need.
    """
    usable = SHARE * (budget - OVERHEAD)
    tried: list[Needs] = []
    for storage in storages:
        for checkpointing in (0, 2, 1):
            for cache in caches:
                for size in sorted(batch_sizes, reverse=True):
                    setting = Setting(storage, checkpointing, size, cache)
                    tried.append(needs(setting))
                    if tried[-1].peak <= usable:
                        return MemoryPlan(budget, setting, tried[-1], encoding)
    least = min(each.peak for each in tried)
    raise ValueError(
        f"`train.memory` is {budget / GB:.1f} GB, of which about {usable / GB:.1f} GB can be used, but training takes "
        f"at least {least / GB:.1f} GB with all that can be chosen. Lower `data.sizes` or the rank of the LoRA; "
        f"streaming of blocks is not part of training."
    )
