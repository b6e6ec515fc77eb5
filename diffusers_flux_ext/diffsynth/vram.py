"""DiffSynth-Studio's `vram_config` as a VRAM budget."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..offload.blocks import FP8
from ..offload.budget.plan import GIB


STAGES = ("offload", "onload", "preparing", "computation")
DISK = "disk"
_KEYS = [f"{stage}_{what}" for stage in STAGES for what in ("dtype", "device")]


@dataclass(frozen=True)
class _Ladder:
    """One model's config with the reference's defaults filled in: dtype and device of each stage."""

    dtypes: tuple[torch.dtype | str, ...]
    devices: tuple[str, ...]

    @property
    def computes_on(self) -> str:
        return self.devices[-1]

    @property
    def on_disk(self) -> bool:
        return DISK in self.devices


def vram_plan_from_diffsynth(
    config: Mapping[str, Any],
    vram_limit: float | None = None,
    ram_budget_gib: float | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Return the arguments of `enable_vram_budget` for a `vram_config` of DiffSynth-Studio.

    The reference moves single layers between four stages: `offload` while another model runs, `onload` while its own
    runs, `preparing` for layers that fit below `vram_limit`, and `computation`. A budget does the same with
    blocks: `vram_limit` becomes the budget, within which as many blocks as fit stay on the card; fp8 at any stage
    becomes fp8 storage of the blocks of the transformer and the ControlNets; `"disk"` becomes blocks on disk. The
    reference counts all memory in use on the card, the budget what PyTorch takes in this process.

    Args:
        config (`Mapping[str, Any]`):
            `offload_dtype`, `offload_device` and so on for `onload`, `preparing` and `computation`, with the
            reference's defaults for those that are left out; or such configs by component name.
        vram_limit (`float`, *optional*): GiB; the card's size by default, where there is one.
        ram_budget_gib (`float`, *optional*): GiB of host memory for weights; needed with `"disk"`.
        offload_dir (`str` or `os.PathLike`, *optional*): Where blocks are written; needed with `"disk"`.

    Returns:
        `dict[str, Any]`: for `pipe.enable_vram_budget(**arguments)`.

    Raises:
        TypeError: if `config` is not a mapping.
        ValueError: if the config cannot be met, with the reason.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            f"`config` is a {type(config).__name__}; expected a `vram_config`, or a mapping of component names to "
            f"them."
        )
    nested = bool(config) and all(isinstance(value, Mapping) for value in config.values())
    configs = {name: _ladder(value, name) for name, value in config.items()} if nested else {"": _ladder(config, "")}
    devices = {ladder.computes_on for ladder in configs.values()}
    if len(devices) > 1:
        raise ValueError(f"The models compute on {sorted(devices)}; a budget is for one device.")
    device = devices.pop()
    arguments: dict[str, Any] = {"budget_gib": _limit(vram_limit, device), "device": device}
    storage = {name: dtype for name, ladder in configs.items() if (dtype := _storage(ladder, name)) is not None}
    if storage:
        arguments["storage_dtype"] = storage if nested else storage[""]
    if any(ladder.on_disk for ladder in configs.values()):
        if ram_budget_gib is None or offload_dir is None:
            raise ValueError(
                'The config puts weights on "disk", which takes `ram_budget_gib`, the host memory that weights may '
                "take, and `offload_dir`, a folder with room for them. The reference reads the model's own files."
            )
        arguments |= {"ram_budget_gib": ram_budget_gib, "offload_dir": offload_dir}
    return arguments


def _ladder(config: Mapping[str, Any], name: str) -> _Ladder:
    of = f" of {name!r}" if name else ""
    unknown = sorted(set(config) - set(_KEYS))
    if unknown:
        raise ValueError(f"The config{of} has the unknown keys {unknown}; expected {_KEYS}.")
    for key in ("computation_dtype", "computation_device"):
        if config.get(key) is None:
            raise ValueError(f"The config{of} has no `{key}`, from which the others take their defaults.")
    dtypes, devices = [], []
    for stage in STAGES:
        dtype = config.get(f"{stage}_dtype") or config["computation_dtype"]
        fallback = DISK if dtype == DISK else config["computation_device"]
        device = str(config.get(f"{stage}_device") or fallback)
        if (dtype == DISK) != (device == DISK):
            raise ValueError(
                f"`{stage}_dtype` is {dtype} and `{stage}_device` is {device}{of}. What is on disk has no other type: "
                f'both are "disk", or neither is.'
            )
        if dtype != DISK and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f'`{stage}_dtype` is {dtype!r}{of}; expected a floating `torch.dtype` or "disk".')
        dtypes.append(dtype)
        devices.append(device)
    _check_order(devices, of)
    return _Ladder(tuple(dtypes), tuple(devices))


def _check_order(devices: list[str], of: str) -> None:
    if devices[-1] == DISK:
        raise ValueError(f'`computation_device` is "disk"{of}, where nothing can be computed.')
    try:
        kinds = [DISK if device == DISK else torch.device(device).type for device in devices]
    except RuntimeError as error:
        raise ValueError(f"A device of {devices}{of} is unknown: {error}") from error
    cards = {device for device, kind in zip(devices, kinds) if kind not in (DISK, "cpu")}
    if (
        len({torch.device(card).type for card in cards}) > 1
        or len({torch.device(card).index or 0 for card in cards}) > 1
    ):
        raise ValueError(f"The stages{of} name several cards, {sorted(cards)}; a budget is for one.")
    ranks = [(DISK, "cpu").index(kind) if kind in (DISK, "cpu") else 2 for kind in kinds]
    for stage, before, rank, earlier in zip(STAGES[1:], STAGES, ranks[1:], ranks):
        if rank < earlier:
            raise ValueError(
                f"`{stage}_device` is farther from the computation than `{before}_device`{of}: {devices}. Each stage "
                f"brings weights nearer, from disk over the CPU to the card."
            )


def _storage(ladder: _Ladder, name: str) -> torch.dtype | None:
    of = f" of {name!r}" if name else ""
    computes: Any = ladder.dtypes[-1]
    if computes in FP8:
        raise ValueError(
            f"`computation_dtype` is {computes}{of}: the reference multiplies in 8 bits then, and a budget does not. "
            f"Use it for storage and compute in torch.bfloat16."
        )
    stored: set[Any] = {dtype for dtype in ladder.dtypes[:-1] if dtype not in (DISK, computes)}
    coarse = {dtype for dtype in stored if dtype in FP8}
    if len(coarse) > 1:
        raise ValueError(f"The stages{of} store in {sorted(map(str, coarse))}, which rounds twice. Choose one.")
    for dtype in stored - coarse:
        if torch.promote_types(dtype, computes) != dtype:
            raise ValueError(
                f"The weights{of} are stored in {dtype} but computed in {computes}, which would round them first. "
                f"Load the pipeline in {dtype}, or store in {computes} or 8 bits."
            )
    # A wider type is rounded before computing, so storing the rounded weights gives the same result.
    return next(iter(coarse), None)


def _limit(vram_limit: float | None, device: str) -> float:
    if vram_limit is not None:
        if isinstance(vram_limit, bool) or not isinstance(vram_limit, (int, float)) or not vram_limit > 0:
            raise ValueError(f"`vram_limit` is {vram_limit!r}; expected a positive number of GiB.")
        return vram_limit
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise ValueError(
            "Without `vram_limit` the card's size is the limit, and there is no card here. Give it in GiB."
        )
    return torch.cuda.mem_get_info(device)[1] / GIB


def vram_arguments(
    configs: Mapping[str, Mapping[str, Any]], vram_limit: float | None, dtype: torch.dtype, device: Any
) -> dict[str, Any] | None:
    """Return the arguments of `enable_vram_budget` for the models of a pipeline whose configs ask for it.

    Args:
        configs (`Mapping[str, Mapping[str, Any]]`): The fields of VRAM management by component.
        vram_limit (`float`, *optional*): GiB; the card's size by default.
        dtype (`torch.dtype`): What the pipeline computes in.
        device (`str` or `torch.device`): Where it computes.

    Returns:
        `dict[str, Any]`, or `None` if no config has both `offload_device` and `offload_dtype`.

    Raises:
        ValueError: if the configs cannot be met.
    """
    defaults = {"computation_dtype": dtype, "computation_device": device}
    managed = {
        name: {key: value for key, value in config.items() if value is not None}
        | {key: value for key, value in defaults.items() if config.get(key) is None}
        for name, config in configs.items()
        if config.get("offload_device") is not None and config.get("offload_dtype") is not None
    }
    return vram_plan_from_diffsynth(managed, vram_limit) if managed else None
