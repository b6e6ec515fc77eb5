"""Keeps a VRAM plan: loads and evicts weights with the phases of a call, and plans again when needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from ..._compat.parallel import split_degree
from ..claims import check_movable, check_unclaimed
from .demand import is_autoencoder, is_denoiser, larger
from .estimate import Workload, set_tiling
from .placed_model import PlacedModel, fingerprint
from .placement import LOOP
from .plan import VRAMPlan
from .planner import plan_modules
from .report import PeakMeter


logger = logging.get_logger(__name__)


class VRAMBudget:
    """Keeps the weights of a pipeline where its plan says.

    Args:
        modules (`Mapping[str, torch.nn.Module]`): The models by their names in the plan.
        plan (`VRAMPlan`): The plan.
        device (`torch.device`): Where to run.

    Attributes:
        plan (`VRAMPlan`): The plan in force.
        phase (`str`, *optional*): The current phase, or the last one.
        parts (`dict[str, PlacedModel]`): The models.
        meter (`PeakMeter`): The measured peaks.

    Raises:
        ValueError: if a model is offloaded in another way, or quantised so that its weights cannot be moved.
    """

    def __init__(self, modules: Mapping[str, nn.Module], plan: VRAMPlan, device: torch.device) -> None:
        for name, module in modules.items():
            check_unclaimed(module, name)
            check_movable(module, name)
        self.modules, self.plan, self.device = dict(modules), plan, device
        self.meter = PeakMeter(device)
        self.phase: str | None = None
        self.parts: dict[str, PlacedModel] = {}
        self._suspended = 0
        self._tiling: dict[str, tuple[bool, bool]] = {}
        self._attach()

    def enter(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Place a model's weights before it runs.

        Args:
            name (`str`): The model.
            inputs (`Mapping[str, Any]`): The keyword arguments it is called with.
        """
        if self._suspended:
            return
        part = self.parts[name]
        new_phase = part.plan.phase != self.phase
        workload = self._larger_workload(name, inputs)
        changed = any(not each.is_intact() for each in self.parts.values()) or (
            new_phase and any(fingerprint(each.module) != each.fingerprint for each in self.parts.values())
        )
        if changed or workload is not None:
            self.rebuild(workload)
        part = self.parts[name]
        if part.plan.phase != self.phase:
            self._switch(part.plan.phase)
        for other in self.parts.values():
            if other is not part:
                other.evict_streamed()
        part.load()

    def fit(self, batch_size: int, image_tokens: int, text_tokens: int) -> None:
        """Plan again if a call of the transformer is larger than planned, or shared by another number of devices.

        Args:
            batch_size (`int`): Samples of the call.
            image_tokens (`int`): Image tokens of all devices together.
            text_tokens (`int`): Text tokens of all devices together.

        Raises:
            VRAMBudgetError: if the budget is too small.
        """
        found = self._larger_than_planned(batch_size, image_tokens, text_tokens)
        workload, devices = found or self.plan.workload, self._devices
        if found is not None or workload.devices != devices:
            self.rebuild(replace(workload, devices=devices))

    def limit_tile(self, tile: int | None) -> None:
        """Decode in tiles that are not larger than others use, and plan again.

        Args:
            tile (`int`, *optional*): Side of the tiles in pixels; without it there is no limit.
        """
        self.rebuild(replace(self.plan.workload, largest_tile=tile))

    def rebuild(self, workload: Workload | None = None) -> None:
        """Plan again for the current models.

        Args:
            workload (`Workload`, *optional*): Another call; the same by default.

        Raises:
            VRAMBudgetError: if the budget is too small now.
        """
        self._detach(again=True)
        self._plan_again(workload or self.plan.workload)
        self._attach()

    @contextmanager
    def suspended(self, weights: bool = False) -> Iterator[None]:
        """Hold everything in host memory while it is changed, then plan again.

        Args:
            weights (`bool`, *optional*, defaults to `False`):
                Whether to load weights that the budget wrote to disk, too; those that [`stream_from_disk`] reads from
                their own files stay there.
        """
        if not self._suspended:
            self._detach(again=True)
        if weights:
            for part in self.parts.values():
                part.take_from_disk()
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1
            if not self._suspended:
                self._plan_again(self.plan.workload)
                self._attach()

    def disable(self) -> None:
        """Remove all hooks; the weights are in host memory afterwards, and the autoencoder's tiling is restored."""
        self._detach(again=False)
        for name, (tiling, slicing) in self._tiling.items():
            self.modules[name].use_tiling = tiling  # type: ignore[assignment]
            self.modules[name].use_slicing = slicing  # type: ignore[assignment]
        self.parts = {}

    def _larger_workload(self, name: str, inputs: Mapping[str, Any]) -> Workload | None:
        image, text = inputs.get("hidden_states"), inputs.get("encoder_hidden_states")
        if self.parts[name].plan.phase != LOOP or image is None or text is None or image.ndim != 3:
            return None
        if is_denoiser(self.modules[name]) and (devices := self._devices) != self.plan.workload.devices:
            return replace(self.plan.workload, devices=devices)
        if is_denoiser(self.modules[name]) and devices > 1:
            # These may be a share of the tokens; all processes asked each other before.
            return None
        return self._larger_than_planned(image.shape[0], image.shape[1], text.shape[1])

    @property
    def _devices(self) -> int:
        """Devices that share the transformer's tokens."""
        return max((split_degree(module) for module in self.modules.values() if is_denoiser(module)), default=1)

    def _larger_than_planned(self, batch_size: int, image_tokens: int, text_tokens: int) -> Workload | None:
        found = larger(self.plan.workload, batch_size, image_tokens, text_tokens)
        if found is not None:
            logger.warning(
                f"The VRAM plan was made for a batch of {self.plan.workload.batch} with "
                f"{self.plan.workload.image_tokens} image and {self.plan.workload.text_tokens} text tokens, got "
                f"{batch_size}, {image_tokens} and {text_tokens}: planning again. To avoid this, give "
                f"`height`, `width`, `batch` and `conditions` to `enable_vram_budget`."
            )
        return found

    def _switch(self, phase: str) -> None:
        """Switch phases; only here do weights of other phases leave the card."""
        self.meter.close(self.phase)
        keeps = self.plan.phase(phase).keeps
        evicted = [part.evict(keeps) for part in self.parts.values() if part.plan.phase != phase]
        if any(evicted):
            self.meter.empty_cache()
        self.phase = phase
        self.meter.open()

    def _plan_again(self, workload: Workload) -> None:
        plan = self.plan
        self.plan = plan_modules(self.modules, plan.budget_gib, workload, plan.offload_dir, plan.options)

    def _attach(self) -> None:
        stream = None if self.device.type == "cpu" else torch.Stream(self.device)
        if self.device.type == "cuda":
            stream = torch.cuda.Stream(self.device)
        root = self.plan.offload_dir
        for plan in self.plan.components:
            module = self.modules[plan.name]
            folder = None if root is None else Path(root) / plan.name
            self.parts[plan.name] = PlacedModel(module, plan, self.device, stream, folder, self)
            if is_autoencoder(module):
                self._tiling.setdefault(plan.name, (module.use_tiling, module.use_slicing))  # type: ignore[arg-type]
                set_tiling(module, self.plan.vae_tile)
        self.phase = None

    def _detach(self, again: bool) -> None:
        for part in self.parts.values():
            part.restore(keep_entry_hook=again)
