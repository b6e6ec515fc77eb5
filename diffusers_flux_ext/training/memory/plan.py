"""The fastest setting that fits a budget of memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .needs import Needs, Setting


GB = 10**9
OVERHEAD = 0.6 * GB
"""The context and the libraries' workspaces of a GPU, as an estimate."""

SHARE = 0.95
"""How much of the rest can be used: the allocator's blocks do not fit into each other."""

_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB)\s*", re.IGNORECASE)


def read_budget(text: str, least: float = 1e-6) -> int:
    """Read an amount of memory.

    Args:
        text (`str`): Such as `"12GB"` (of 10 ** 9 bytes) or `"16 GiB"` (of 2 ** 30).
        least (`float`, defaults to 1e-6): The smallest number that is allowed.

    Returns:
        `int`: bytes.

    Raises:
        ValueError: if it is none.
    """
    found = _BUDGET.fullmatch(text)
    if found is None or float(found.group(1)) < least:
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
        if setting.offload:
            every += " with inputs in host memory"
        streamed = "" if setting.resident is None else f", all but {setting.resident / GB:.1f} GB of blocks streamed"
        moved = f"\nPredicted copies from and to host memory: {needs.moved / GB:.1f} GB a batch" if needs.moved else ""
        return (
            f"For {self.budget / GB:.1f} GB: storage {setting.storage or 'as it is'}{streamed}, checkpointing "
            f"{every}, batches of {setting.batch_size}, {'with' if setting.cache else 'without'} a cache\n"
            f"Predicted peak while encoding: {self.encoding / GB:.1f} GB\n"
            f"Predicted peak while training: {needs.peak / GB:.1f} GB ({parts}){moved}"
        )


def choose_setting(
    budget: int,
    needs: Callable[[Setting], Needs],
    encoding: int,
    *,
    storages: Sequence[str | None] = (None, "fp8", "nf4"),
    streamed: Sequence[str | None] = ("fp8",),
    batch_sizes: Sequence[int] = (1,),
    caches: Sequence[bool] = (False, True),
) -> MemoryPlan:
    """Choose the setting that computes and copies least among those that fit.

    Weights stay as they are before they are rounded, blocks run once before they run twice, encoders stay before they
    go, and batches are as large as they may be. If none of that fits, inputs of blocks wait in host memory; and if
    that does not either, blocks are streamed, as few as possible.

    Args:
        budget (`int`): Bytes of the GPU.
        needs (`Callable`): Predicts what a setting takes.
        encoding (`int`): The peak while samples are encoded.
        storages (`Sequence[str]`): Ways of storing the blocks that may be taken, best first.
        streamed (`Sequence[str]`): Ways of storing blocks that are streamed, best first.
        batch_sizes (`Sequence[int]`): Batch sizes that may be taken.
        caches (`Sequence[bool]`): Whether there may be a cache, or none.

    Returns:
        `MemoryPlan`

    Raises:
        ValueError: if nothing fits; the message has the smallest need.
    """
    usable = SHARE * (budget - OVERHEAD)
    tried: list[Needs] = []
    for setting in _settings(storages, streamed):
        for cache in caches:
            for size in sorted(batch_sizes, reverse=True):
                full = replace(setting, batch_size=size, cache=cache)
                tried.append(needs(full))
                if tried[-1].peak <= usable:
                    full = _filled(full, usable - tried[-1].peak)
                    return MemoryPlan(budget, full, needs(full), encoding)
    least = min(each.peak for each in tried)
    raise ValueError(
        f"`train.memory` is {budget / GB:.1f} GB, of which about {usable / GB:.1f} GB can be used, but training takes "
        f"at least {least / GB:.1f} GB with all that can be chosen. Lower `data.sizes` or the rank of the LoRA."
    )


def _settings(storages: Sequence[str | None], streamed: Sequence[str | None]) -> Iterator[Setting]:
    for storage in storages:
        for checkpointing in (0, 2, 1):
            yield Setting(storage, checkpointing)
    for storage in storages:
        yield Setting(storage, 1, offload=True)
    for storage in streamed:
        for offload in (False, True):
            yield Setting(storage, 1, offload=offload, resident=0)


def _filled(setting: Setting, room: float) -> Setting:
    """Let as much of streamed blocks stay as there is room, in tenths of a GB."""
    return setting if setting.resident is None else replace(setting, resident=int(room // (GB // 10)) * (GB // 10))
