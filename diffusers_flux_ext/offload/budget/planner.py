"""Plan where the weights of a pipeline are in a call."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..._compat.parallel import split_degree
from ...checkpoints.packed_weights import check_not_packed
from ...condition import check_conditions
from ...demand import Demand
from ..disk.stream import stream_of
from .demand import autoencoder_need, is_autoencoder, is_denoiser, need_of, planned_modules, storage_of, workload_of
from .estimate import Workload
from .placement import Need, mark_staying, phase_plans, place, send_to_disk, smallest_phases
from .plan import GIB, ComponentPlan, PhasePlan, VRAMBudgetError, VRAMPlan


# Left free of each budget: scratch memory of kernels, and what the allocator cannot use again at once.
MARGIN_SHARE, MARGIN_BYTES = 0.02, 2**26


def plan_vram(
    pipe: Any,
    budget_gib: float = 8,
    height: int = 1024,
    width: int = 1024,
    batch: int = 1,
    conditions: Sequence[Any] | None = None,
    storage_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    ram_budget_gib: float | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
    max_sequence_length: int = 512,
    added: Sequence[Demand] = (),
    ulysses_degree: int | None = None,
) -> VRAMPlan:
    """Plan where the weights of a pipeline are, so that a call stays within a budget.

    Nothing is moved, and models on the meta device suffice: sizes come from shapes, and activations from a run of each
    model on the meta device in which the tensors that live at once are counted.

    Args:
        pipe (`DiffusionPipeline` or `Mapping[str, torch.nn.Module]`):
            A FLUX.1 pipeline of this package or of diffusers, or its models by name.
        budget_gib (`float`, *optional*, defaults to 8):
            GiB that PyTorch may take on the card. The CUDA context and other programs come on top.
        height (`int`, *optional*, defaults to 1024): The largest image, in pixels.
        width (`int`, *optional*, defaults to 1024): The largest image, in pixels.
        batch (`int`, *optional*, defaults to 1): Prompts times `num_images_per_prompt`.
        conditions (`Sequence[FluxCondition]`, *optional*): Their modules are planned too, and their tokens counted.
        storage_dtype (`torch.dtype` or `Mapping[str, torch.dtype]`, *optional*):
            `torch.float8_e4m3fn` stores the blocks of the transformer and of the ControlNets in half the size, at a
            loss; a mapping names the models. By default nothing is cast.
        ram_budget_gib (`float`, *optional*): GiB of host memory for weights; the rest goes to `offload_dir`.
        offload_dir (`str` or `os.PathLike`, *optional*): Folder for blocks that do not fit into host memory.
        max_sequence_length (`int`, *optional*, defaults to 512): Text tokens of the prompt.
        added (`Sequence[Demand]`, *optional*): Demands of conditions that are not passed in `conditions`.
        ulysses_degree (`int`, *optional*):
            Devices that will share the tokens (`enable_parallelism`), each of which has this budget; by default those
            that do already.

    Returns:
        `VRAMPlan`: print it to read it.

    Raises:
        VRAMBudgetError: if the budget is too small; the message says the smallest that works.
        TypeError: if `conditions` holds something other than conditions.
        ValueError: if an argument is out of range.
    """
    _check(budget_gib=budget_gib, height=height, width=width, batch=batch, max_sequence_length=max_sequence_length)
    if ulysses_degree is not None:
        _check(ulysses_degree=ulysses_degree)
    if ram_budget_gib is not None:
        _check(ram_budget_gib=ram_budget_gib)
        if offload_dir is None:
            raise ValueError("`ram_budget_gib` needs `offload_dir`, a folder on a disk with room for the weights.")
    elif offload_dir is not None:
        raise ValueError("`offload_dir` is for what `ram_budget_gib` leaves no room for. Give both, or neither.")
    conditions = check_conditions(conditions)
    modules = planned_modules(pipe, conditions)
    if ram_budget_gib is not None:
        for name, module in modules.items():
            check_not_packed(
                module,
                f"go to disk for `ram_budget_gib`, as {name!r}",
                "Leave `ram_budget_gib` out, and load the other large models by `load_streamed`.",
            )
    options = {"conditions": conditions, "storage_dtype": storage_dtype, "ram_budget_gib": ram_budget_gib}
    own = getattr(pipe, "demand", None)
    added = [*added, *([] if own is None else [own(max_sequence_length)])]
    devices = ulysses_degree or max((split_degree(each) for each in modules.values() if is_denoiser(each)), default=1)
    workload = workload_of(conditions, height, width, batch, max_sequence_length, added, devices)
    return plan_modules(
        modules, budget_gib, workload, None if offload_dir is None else os.fspath(offload_dir), options
    )


def plan_modules(
    modules: Mapping[str, nn.Module],
    budget_gib: float,
    workload: Workload,
    offload_dir: str | None,
    options: Mapping[str, Any],
) -> VRAMPlan:
    """Plan models for a call, see [`plan_vram`].

    Args:
        modules (`Mapping[str, torch.nn.Module]`): The models.
        budget_gib (`float`): The budget.
        workload (`Workload`): The call.
        offload_dir (`str`, *optional*): Folder for blocks on disk.
        options (`Mapping[str, Any]`): `storage_dtype` and `ram_budget_gib` of [`plan_vram`].

    Returns:
        `VRAMPlan`

    Raises:
        VRAMBudgetError: if the budget is too small.
    """
    storage = storage_of(modules, options["storage_dtype"])
    margin = int(budget_gib * GIB * MARGIN_SHARE) + MARGIN_BYTES
    available = int(budget_gib * GIB) - margin
    from_disk = {name for name, module in modules.items() if stream_of(module) is not None}
    while True:
        needs, tile = _needs(modules, workload, storage, from_disk, available)
        plans, failed = place(needs, available)
        if failed:
            raise _too_small(budget_gib, needs, failed, workload, storage)
        phases = phase_plans(plans, needs, available)
        plans = _choose_disk(modules, mark_staying(plans, phases), options["ram_budget_gib"], budget_gib)
        # A model of which a part lies on disk is streamed as a whole, which takes other places.
        more = {plan.name for plan in plans if plan.on_disk} - from_disk
        if not more:
            return _plan(plans, phases, budget_gib, margin, workload, tile, offload_dir, options)
        from_disk |= more


def _plan(
    plans: Sequence[ComponentPlan], phases: Sequence[PhasePlan], budget_gib: float, margin: int, workload: Workload,
    tile: int | None, offload_dir: str | None, options: Mapping[str, Any],
) -> VRAMPlan:  # fmt: skip
    return VRAMPlan(budget_gib, margin, workload, tuple(plans), tuple(phases), tile, offload_dir, dict(options))


def _needs(
    modules: Mapping[str, nn.Module],
    workload: Workload,
    storage: Mapping[str, torch.dtype],
    from_disk: Collection[str],
    available: int,
) -> tuple[list[Need], int | None]:
    """Return what the models need, and the tile size of the autoencoder."""
    needs, tile = [], None
    for name, module in modules.items():
        if is_autoencoder(module):
            need, tile = autoencoder_need(name, module, workload, available)
        else:
            need = need_of(name, module, workload, storage.get(name), from_disk=name in from_disk)
        needs.append(need)
    return needs, tile


def _choose_disk(
    modules: Mapping[str, nn.Module], plans: Sequence[ComponentPlan], ram_budget_gib: float | None, budget_gib: float
) -> list[ComponentPlan]:
    """Choose the blocks that are read from disk whenever they come to the card."""
    if ram_budget_gib is None:
        streams = {name: stream_of(module) for name, module in modules.items()}
        unkept = {name: [b.name for b in stream.blocks if not b.keep] for name, stream in streams.items() if stream}
        return [replace(plan, on_disk=frozenset(unkept.get(plan.name, ()))) for plan in plans]
    plans, excess = send_to_disk(plans, int(ram_budget_gib * GIB))
    if excess:
        raise VRAMBudgetError(
            f"`ram_budget_gib` is {ram_budget_gib:g}, but {excess / GIB:.2f} GiB more are needed for what is not in "
            f"blocks, and for the blocks under way. Raise it, or give `storage_dtype=torch.float8_e4m3fn`.",
            budget_gib,
        )
    return plans


def _too_small(
    budget_gib: float, needs: Sequence[Need], failed: Sequence[str], workload: Workload, storage: Mapping[str, Any]
) -> VRAMBudgetError:
    phases = smallest_phases(needs)
    smallest = math.ceil((max(phases.values()) + MARGIN_BYTES) / (1 - MARGIN_SHARE) / GIB * 100 + 1) / 100
    worst = max(phases, key=lambda phase: phases[phase])
    hints = [] if storage or worst not in ("loop",) else ["`storage_dtype=torch.float8_e4m3fn`"]
    hints += [f"a smaller image than {workload.width} x {workload.height}"]
    hints += ["a smaller batch"] if workload.batch > 1 else []
    hints += ["fewer or smaller references"] if workload.reference_tokens and worst == "loop" else []
    hints += ["fewer conditions"] if len([need for need in needs if need.phase == "loop"]) > 1 else []
    hints += ["fewer or shorter texts"] if workload.text_tokens > 512 or worst == "text_encoder_2" else []
    return VRAMBudgetError(
        f"A budget of {budget_gib:g} GiB is too small for {', '.join(failed)}: the smallest that works is "
        f"{smallest:.2f} GiB, because of {worst}. It is lowered by {', '.join(hints)}.",
        smallest,
    )


def _check(**numbers: float) -> None:
    for name, number in numbers.items():
        whole = name not in ("budget_gib", "ram_budget_gib")
        kind = int if whole else (int, float)
        if isinstance(number, bool) or not isinstance(number, kind) or not 0 < number < math.inf:
            raise ValueError(f"`{name}` is {number!r}; expected a positive {'whole ' if whole else ''}number.")
        if name in ("height", "width") and number % 16:
            raise ValueError(f"`{name}` is {number}; expected a multiple of 16 pixels.")
