"""A VRAM budget for a pipeline: a plan of where the weights are, kept while the pipeline changes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from ..._compat import vram_budget_of
from ...condition import check_conditions
from ...demand import Demand
from ..blocks import rest_bytes, streamable_blocks, tensor_bytes
from .budget import VRAMBudget
from .demand import autoencoder_need, is_autoencoder, need_of, planned_modules, storage_of, workload_of
from .estimate import Workload
from .placement import Need, mark_staying, phase_plans, place, send_to_disk, smallest_phases
from .plan import GIB, ComponentPlan, VRAMBudgetError, VRAMPlan
from .report import MemoryReport


__all__ = [
    "VRAMBudgetError",
    "VRAMBudgetMixin",
    "VRAMPlan",
    "apply_vram_plan",
    "disable_vram_budget",
    "memory_report",
    "plan_vram",
]

logger = logging.get_logger(__name__)

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
) -> VRAMPlan:
    """
    Plan where the weights of a pipeline are, so that a call stays within a budget.

    Nothing is moved, and models on the meta device do: sizes come from shapes, and activations from a run of each
    model on the meta device in which the tensors that live at once are counted.

    Args:
        pipe (`DiffusionPipeline` or `Mapping[str, torch.nn.Module]`):
            A FLUX.1 pipeline of this package or of diffusers, or its models by name.
        budget_gib (`float`, *optional*, defaults to 8):
            GiB that PyTorch may take on the card. The CUDA context and other programs come on top.
        height (`int`, *optional*, defaults to 1024): The largest picture, in pixels.
        width (`int`, *optional*, defaults to 1024): The largest picture, in pixels.
        batch (`int`, *optional*, defaults to 1): Prompts times `num_images_per_prompt`.
        conditions (`Sequence[FluxCondition]`, *optional*): Their modules are planned too, and their tokens counted.
        storage_dtype (`torch.dtype` or `Mapping[str, torch.dtype]`, *optional*):
            `torch.float8_e4m3fn` stores the blocks of the transformer and of the ControlNets in half the size, at a
            loss; a mapping names the models. By default nothing is cast.
        ram_budget_gib (`float`, *optional*): GiB of host memory for weights; what is over goes to `offload_dir`.
        offload_dir (`str` or `os.PathLike`, *optional*): Where blocks are written that host memory has no room for.
        max_sequence_length (`int`, *optional*, defaults to 512): Text tokens of the prompt.
        added (`Sequence[Demand]`, *optional*): What conditions add that are not at hand.

    Returns:
        `VRAMPlan`: print it to read it.

    Raises:
        VRAMBudgetError: if the budget is too small; the message says the smallest that works.
        TypeError: if `conditions` holds something else than conditions.
        ValueError: if an argument is out of range.
    """
    _check(budget_gib=budget_gib, height=height, width=width, batch=batch, max_sequence_length=max_sequence_length)
    if ram_budget_gib is not None:
        _check(ram_budget_gib=ram_budget_gib)
        if offload_dir is None:
            raise ValueError("`ram_budget_gib` needs `offload_dir`, a folder on a disk with room for the weights.")
    elif offload_dir is not None:
        raise ValueError("`offload_dir` is for what `ram_budget_gib` leaves no room for. Give both, or neither.")
    conditions = check_conditions(conditions)
    modules = planned_modules(pipe, conditions)
    options = {"conditions": conditions, "storage_dtype": storage_dtype, "ram_budget_gib": ram_budget_gib}
    own = getattr(pipe, "demand", None)
    added = [*added, *([] if own is None else [own(max_sequence_length)])]
    workload = workload_of(conditions, height, width, batch, max_sequence_length, added)
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
    """
    A plan for models and a call, as [`plan_vram`] makes it.

    Args:
        modules (`Mapping[str, torch.nn.Module]`): The models.
        budget_gib (`float`): The budget.
        workload (`Workload`): The call.
        offload_dir (`str`, *optional*): Where blocks on disk go.
        options (`Mapping[str, Any]`): `storage_dtype` and `ram_budget_gib` of [`plan_vram`].

    Returns:
        `VRAMPlan`

    Raises:
        VRAMBudgetError: if the budget is too small.
    """
    storage = storage_of(modules, options["storage_dtype"])
    margin = int(budget_gib * GIB * MARGIN_SHARE) + MARGIN_BYTES
    available = int(budget_gib * GIB) - margin
    needs, tile = [], None
    for name, module in modules.items():
        if is_autoencoder(module):
            need, tile = autoencoder_need(name, module, workload, available)
        else:
            need = need_of(name, module, workload, storage.get(name))
        needs.append(need)
    plans, failed = place(needs, available)
    if failed:
        raise _too_small(budget_gib, needs, failed, workload, storage)
    phases = phase_plans(plans, needs, available)
    plans = mark_staying(plans, phases)
    if options["ram_budget_gib"] is not None:
        plans, excess = send_to_disk(plans, int(options["ram_budget_gib"] * GIB))
        if excess:
            raise VRAMBudgetError(
                f"`ram_budget_gib` is {options['ram_budget_gib']:g}, but {excess / GIB:.2f} GiB more are needed for "
                f"the blocks under way. Raise it, or give `storage_dtype=torch.float8_e4m3fn`.",
                budget_gib,
            )
    return VRAMPlan(
        budget_gib=budget_gib,
        margin=margin,
        workload=workload,
        components=tuple(plans),
        phases=tuple(phases),
        vae_tile=tile,
        offload_dir=offload_dir,
        options=dict(options),
    )


def apply_vram_plan(pipe: Any, plan: VRAMPlan, device: torch.device | str | None = None) -> VRAMBudget:
    """
    Put the weights where a plan says, and keep them there.

    The plan is made again when LoRAs are loaded, unloaded or fused, and when a call brings more tokens than planned.
    Copies to the card run on a side stream from pinned memory where the device has streams.

    Args:
        pipe (`DiffusionPipeline` or `Mapping[str, torch.nn.Module]`): The pipeline or the models it was made for.
        plan (`VRAMPlan`): A plan from [`plan_vram`].
        device (`torch.device` or `str`, *optional*): Where to run; the accelerator, or the CPU without one.

    Returns:
        `VRAMBudget`: what keeps the plan; `disable()` ends it.

    Raises:
        ValueError: if the pipeline is offloaded in another way, or its models are not those of the plan.
    """
    modules = planned_modules(pipe, plan.options.get("conditions", ()))
    names = [each.name for each in plan.components]
    if list(modules) != names:
        raise ValueError(f"The plan is for {names}, but the pipeline has {list(modules)}. Make a plan for it.")
    other = [each.name for each in plan.components if not _fits(each, modules[each.name])]
    if other:
        raise ValueError(f"The weights of {other} are not those that the plan is for. Make a plan for them.")
    before = vram_budget_of(pipe)
    left = [name for name in (before.modules if before else ()) if not _among(before.modules[name], modules)]
    disable_vram_budget(pipe)
    if left:
        logger.warning(
            f"{left} of another pipeline are under no budget any more, because this one takes over the models that "
            f"they share. One budget for both takes a dict with the models of both in place of the pipeline."
        )
    return VRAMBudget(modules, plan, _device(device), plan_modules)


def disable_vram_budget(pipe: Any) -> None:
    """
    Take a budget off a pipeline; its weights are in host memory then. Types in which they are stored stay.

    Args:
        pipe (`DiffusionPipeline` or `Mapping[str, torch.nn.Module]`): Without a budget nothing happens.
    """
    budget = vram_budget_of(pipe)
    if budget is not None:
        budget.disable()


def memory_report(pipe: Any) -> MemoryReport:
    """
    Predicted and measured peaks of a pipeline under a budget.

    Args:
        pipe (`DiffusionPipeline`): A pipeline under a budget, best after a call.

    Returns:
        `MemoryReport`: print it to read it. Without a GPU it holds predictions only, and says so.

    Raises:
        ValueError: if the pipeline has no budget.
    """
    budget = vram_budget_of(pipe)
    if budget is None:
        raise ValueError("The pipeline has no VRAM budget. Call `apply_vram_plan` or `enable_vram_budget` first.")
    return MemoryReport.of(budget)


class VRAMBudgetMixin:
    """The budget as methods of a pipeline."""

    def enable_vram_budget(
        self, budget_gib: float = 8, device: torch.device | str | None = None, **kwargs: Any
    ) -> VRAMPlan:
        """
        Keep all calls within a budget.

        Args:
            budget_gib (`float`, *optional*, defaults to 8): GiB that PyTorch may take on the card.
            device (`torch.device` or `str`, *optional*): Where to run; the accelerator, or the CPU without one.
            kwargs: `height`, `width`, `batch`, `conditions`, `storage_dtype` and the others of [`plan_vram`].

        Returns:
            `VRAMPlan`: print it to see what is where.

        Raises:
            VRAMBudgetError: if the budget is too small; a budget that holds already goes on.
        """
        plan = plan_vram(self, budget_gib, **kwargs)
        apply_vram_plan(self, plan, device)
        return plan

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """
        As in diffusers. Under a budget the weights stay where the plan places them; a data type is taken on, and the
        plan made again.

        Args:
            args, kwargs: A device and a data type.

        Returns:
            `DiffusionPipeline`: the pipeline itself.

        Raises:
            ValueError: if there is a data type, but weights are stored in 8 bits.
        """
        budget = vram_budget_of(self)
        given = (*args, kwargs.get("dtype"), kwargs.get("torch_dtype"))
        dtype = next((each for each in given if isinstance(each, torch.dtype)), None)
        if budget is None or dtype is None:
            return super().to(*args, **kwargs)  # type: ignore[misc]
        stored = [each.name for each in budget.plan.components if each.storage_dtype is not None]
        if stored:
            raise ValueError(f"{stored} are stored in 8 bits, which cannot be cast to {dtype}. Load them in {dtype}.")
        with budget.suspended():
            return super().to(dtype=dtype)  # type: ignore[misc]

    def disable_vram_budget(self) -> None:
        """Take the budget off; the weights are in host memory then."""
        disable_vram_budget(self)


def _too_small(
    budget_gib: float, needs: Sequence[Need], failed: Sequence[str], workload: Workload, storage: Mapping[str, Any]
) -> VRAMBudgetError:
    phases = smallest_phases(needs)
    smallest = math.ceil((max(phases.values()) + MARGIN_BYTES) / (1 - MARGIN_SHARE) / GIB * 100 + 1) / 100
    worst = max(phases, key=lambda phase: phases[phase])
    hints = [] if storage or worst not in ("loop",) else ["`storage_dtype=torch.float8_e4m3fn`"]
    hints += [f"a smaller picture than {workload.width} x {workload.height}"]
    hints += ["a smaller batch"] if workload.batch > 1 else []
    hints += ["fewer or smaller references"] if workload.reference_tokens and worst == "loop" else []
    hints += ["fewer conditions"] if len([need for need in needs if need.phase == "loop"]) > 1 else []
    hints += ["fewer or shorter texts"] if workload.text_tokens > 512 or worst == "text_encoder_2" else []
    return VRAMBudgetError(
        f"A budget of {budget_gib:g} GiB is too small for {', '.join(failed)}: the smallest that works is "
        f"{smallest:.2f} GiB, because of {worst}. It is lowered by {', '.join(hints)}.",
        smallest,
    )


def _among(module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    return any(module is other for other in modules.values())


def _fits(plan: ComponentPlan, module: nn.Module) -> bool:
    blocks = streamable_blocks(module).items()
    sizes = {path: tensor_bytes(block, plan.storage_dtype) for path, block in blocks}
    return plan.rest == rest_bytes(module) and {**plan.resident, **plan.streamed} == sizes


def _check(**numbers: float) -> None:
    for name, number in numbers.items():
        whole = name not in ("budget_gib", "ram_budget_gib")
        kind = int if whole else (int, float)
        if isinstance(number, bool) or not isinstance(number, kind) or not 0 < number < math.inf:
            raise ValueError(f"`{name}` is {number!r}; expected a positive {'whole ' if whole else ''}number.")
        if name in ("height", "width") and number % 16:
            raise ValueError(f"`{name}` is {number}; expected a multiple of 16 pixels.")


def _device(device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else torch.device(found.type, torch.accelerator.current_device_index())
