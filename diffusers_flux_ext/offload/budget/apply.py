"""Put a pipeline under a VRAM budget, and remove the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from ..._compat import vram_budget_of
from .budget import VRAMBudget
from .demand import planned_modules, weights_of
from .plan import ComponentPlan, VRAMPlan
from .planner import plan_vram
from .report import MemoryReport


logger = logging.get_logger(__name__)


def apply_vram_plan(pipe: Any, plan: VRAMPlan, device: torch.device | str | None = None) -> VRAMBudget:
    """Place weights as planned, and keep them there.

    The plan is made again when LoRAs are loaded, unloaded or fused, and when a call brings more tokens than planned.
    Copies to the card run on a side stream from pinned memory where the device has streams.

    Args:
        pipe (`DiffusionPipeline` or `Mapping[str, torch.nn.Module]`): The pipeline or the models it was made for.
        plan (`VRAMPlan`): A plan from [`plan_vram`].
        device (`torch.device` or `str`, *optional*): Where to run; the accelerator, or the CPU without one.

    Returns:
        `VRAMBudget`: keeps the plan until `disable()`.

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
            f"{left} of another pipeline no longer have a budget, because this one takes over the models that "
            f"they share. One budget for both takes a dict with the models of both in place of the pipeline."
        )
    return VRAMBudget(modules, plan, _device(device))


def disable_vram_budget(pipe: Any) -> None:
    """Remove the budget of a pipeline; its weights are in host memory afterwards and keep their storage dtype.

    Args:
        pipe (`DiffusionPipeline` or `Mapping[str, torch.nn.Module]`): A pipeline; one without a budget stays as it is.
    """
    budget = vram_budget_of(pipe)
    if budget is not None:
        budget.disable()


def memory_report(pipe: Any) -> MemoryReport:
    """Report predicted and measured peaks of a pipeline under a budget.

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
    """Methods of a pipeline for a VRAM budget."""

    def enable_vram_budget(
        self, budget_gib: float = 8, device: torch.device | str | None = None, **kwargs: Any
    ) -> VRAMPlan:
        """Keep all calls within a budget.

        Args:
            budget_gib (`float`, *optional*, defaults to 8): GiB that PyTorch may take on the card.
            device (`torch.device` or `str`, *optional*): Where to run; the accelerator, or the CPU without one.
            kwargs: `height`, `width`, `batch`, `conditions`, `storage_dtype` and the others of [`plan_vram`].

        Returns:
            `VRAMPlan`: print it to see where the weights are.

        Raises:
            VRAMBudgetError: if the budget is too small; an existing budget stays in force.
        """
        plan = plan_vram(self, budget_gib, **kwargs)
        apply_vram_plan(self, plan, device)
        return plan

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the pipeline as in diffusers.

        Under a budget the weights stay where the plan places them; the data type is applied and the plan recomputed.

        Args:
            args, kwargs: A device and a data type.

        Returns:
            `DiffusionPipeline`: the pipeline itself.

        Raises:
            ValueError: if a data type is given, but weights are stored in 8 bits.
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
        """Remove the budget; the weights are in host memory afterwards."""
        disable_vram_budget(self)


def _among(module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    return any(module is other for other in modules.values())


def _fits(plan: ComponentPlan, module: nn.Module) -> bool:
    rest, blocks = weights_of(module, plan.storage_dtype, plan.from_disk)
    return plan.rest == rest and {**plan.resident, **plan.streamed} == blocks


def _device(device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else torch.device(found.type, torch.accelerator.current_device_index())
