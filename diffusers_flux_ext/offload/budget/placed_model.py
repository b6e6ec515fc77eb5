"""A model under a VRAM budget, whose weights come to the card and leave it in groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from diffusers import AutoencoderKL
from diffusers.hooks import ModelHook, apply_group_offloading, apply_layerwise_casting
from torch import nn

from ..._compat import (
    GROUP_OFFLOADING,
    GroupOffloadingConfig,
    GroupOffloadingHook,
    GroupOffloadingType,
    HookRegistry,
    ModuleGroup,
    is_stored_in_fewer_bits,
    register_innermost,
    remove_group_offloading,
    remove_hook,
)
from ...checkpoints.packed_weights import move_in_place
from ..blocks import KEPT_PRECISE, compute_dtype, rest_tensors, streamable_blocks
from ..disk.attach import attach, detach
from ..disk.plan import make_plan
from ..disk.stream import DiskStream, stream_of
from .plan import ComponentPlan


CPU = torch.device("cpu")
ENTRY_HOOK = "vram_budget"
REST = ""


class EntryHook(ModelHook):
    """Tells the budget that a model is about to run. Without a `new_forward` it leaves hooks around it intact."""

    def __init__(self, budget: Any, name: str) -> None:
        super().__init__()
        self.budget, self.name = budget, name

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Move the model's weights and its inputs to the card."""
        self.budget.enter(self.name, kwargs)
        return send_to_device(args, self.budget.device), send_to_device(kwargs, self.budget.device)


class _MarkerHook(GroupOffloadingHook):
    """Shows diffusers that a model is group offloaded, and its device; the budget moves the weights."""

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output


class _StreamHook(_MarkerHook):
    """Loads a streamed block for its turn."""

    def __init__(self, group: Any, config: Any, part: PlacedModel, name: str) -> None:
        super().__init__(group, config=config)
        self.part, self.name = part, name

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.part.use(self.name)
        device = self.part.device
        return send_to_device(args, device), send_to_device(kwargs, device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.part.release(self.name)
        return output


class PlacedModel:
    """A model whose weights are where its plan says.

    Args:
        module (`torch.nn.Module`): The model.
        plan (`ComponentPlan`): Its plan.
        device (`torch.device`): Where it runs.
        stream (`torch.Stream`, *optional*): The side stream that copies; without it copies wait.
        folder (`Path`, *optional*): Folder for blocks that are read from disk.
        budget (`VRAMBudget`): Notified when the model runs.

    Attributes:
        loaded (`set[str]`): Names of the parts that are on the card; `""` stands for the rest.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: ComponentPlan,
        device: torch.device,
        stream: Any,
        folder: Path | None,
        budget: Any,
    ) -> None:
        self.module, self.plan, self.device = module, plan, device
        self.stream = None if plan.stays else stream
        self.folder = folder
        self.loaded: set[str] = set()
        self.groups: dict[str, Any] = {}
        self._store()
        self.disk = self._place_on_disk() if plan.from_disk else None
        if plan.level == "leaves":
            apply_group_offloading(module, device, CPU, "leaf_level", use_stream=plan.prefetch and stream is not None)
        else:
            self._make_groups()
        for entry in entries(module):
            # Removing the only hook removes the registry, too.
            remove_hook(entry, ENTRY_HOOK)
            HookRegistry.check_if_exists_or_initialize(entry).register_hook(EntryHook(budget, plan.name), ENTRY_HOOK)
        self.fingerprint = fingerprint(module)

    # ---- what the budget asks for -----------------------------------------------------------------------------------

    def load(self) -> None:
        """Load what stays during the phase, and start copying the first streamed block."""
        missing = [name for name in (REST, *self.plan.resident) if name in self.groups and name not in self.loaded]
        for name in missing:
            self._load(name)
        if missing and self.stream is not None:
            self.stream.synchronize()
        if self.disk is None and self.groups and self.plan.prefetch and self.plan.streamed:
            self._keep_streamed(first := next(iter(self.plan.streamed)))
            if first not in self.loaded:
                self._load(first)

    def evict(self, keeps: frozenset[tuple[str, str]] = frozenset()) -> bool:
        """Evict everything that may not stay, and return whether there was anything."""
        leaving = [name for name in self.loaded if (self.plan.name, name) not in keeps]
        for name in leaving:
            self._unload(name)
        if self.disk is None:
            return bool(leaving)
        blocks = [block.name for block in self.disk.blocks if (self.plan.name, block.name) not in keeps]
        return self.disk.evict(blocks) or bool(leaving)

    def evict_streamed(self) -> None:
        """Evict blocks that were prefetched but not used."""
        if self.disk is not None:
            self.disk.release()
        for name in self.loaded & self.plan.streamed.keys():
            self._unload(name)

    def use(self, name: str) -> None:
        """Load a streamed block, and start copying the next one."""
        following = self._following(name)
        self._keep_streamed(name, following)
        if name not in self.loaded:
            self._load(name)
        if following is not None and following not in self.loaded:
            # diffusers' group waits for the copy under way before it starts its own.
            self._load(following)
        elif self.stream is not None:
            self.stream.synchronize()

    def release(self, name: str) -> None:
        """Release a streamed block after its turn."""
        if name in self.loaded:
            self._unload(name)

    def is_intact(self) -> bool:
        """Whether the hooks that move the weights are in place: diffusers replaces them when LoRAs change."""
        if self.plan.level == "leaves":
            return True
        hooks = (
            HookRegistry.check_if_exists_or_initialize(entry).get_hook(GROUP_OFFLOADING) for entry in self._entries
        )
        return all(isinstance(hook, _MarkerHook) for hook in hooks)

    def restore(self, keep_entry_hook: bool = False) -> None:
        """Remove the hooks; the weights are in host memory afterwards, or on the card if they never leave it.

        Args:
            keep_entry_hook (`bool`, *optional*, defaults to `False`): Whether the model will be placed again.
        """
        remove_group_offloading(self.module)
        if self.disk is not None and keep_entry_hook:
            self.disk.evict()
        elif self.disk is not None:
            self.take_from_disk()
            self.disk.unplace()
        if not (keep_entry_hook and self.plan.stays):
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                move_in_place(tensor, CPU)
        if not keep_entry_hook:
            for entry in entries(self.module):
                remove_hook(entry, ENTRY_HOOK)
        self.loaded.clear()

    def take_from_disk(self) -> None:
        """Load weights into host memory that were written to disk for the budget."""
        if self.disk is not None and self.disk.written and stream_of(self.module) is self.disk:
            self.disk.unplace()
            detach(self.module, self.disk, as_stored=is_stored_in_fewer_bits(self.module))

    # ---- groups -----------------------------------------------------------------------------------------------------

    def _store(self) -> None:
        dtype = self.plan.storage_dtype
        if dtype is None or is_stored_in_fewer_bits(self.module) or stream_of(self.module) is not None:
            return
        computes = compute_dtype(self.module)
        for block in streamable_blocks(self.module).values():
            apply_layerwise_casting(block, dtype, computes, skip_modules_pattern=KEPT_PRECISE)

    def _place_on_disk(self) -> DiskStream:
        """Read blocks from the files that the model is already streamed from, or from files written here."""
        stream = stream_of(self.module)
        if stream is None:
            plan = make_plan(self.module, None, list(streamable_blocks(self.module)), None,
                             compute_dtype(self.module), self.folder)  # fmt: skip
            stream = attach(self.module, plan, CPU)
            stream.written = True
        kept = {} if self.plan.stays else {**self.plan.resident, **self.plan.streamed}
        stream.place(self.device, int(self.plan.prefetch), self.plan.resident, kept.keys() - self.plan.on_disk)
        return stream

    def _make_groups(self) -> None:
        self._entries = entries(self.module)
        config = GroupOffloadingConfig(
            onload_device=self.device,
            offload_device=CPU,
            offload_type=GroupOffloadingType.BLOCK_LEVEL,
            num_blocks_per_group=1,
            non_blocking=self.stream is not None,
            record_stream=False,
            low_cpu_mem_usage=False,
            stream=self.stream,
        )
        parameters, buffers = rest_tensors(self.module)
        if self.disk is not None:
            parameters, buffers = list(self.module.parameters()), list(self.module.buffers())
        self.groups[REST] = self._group(REST, self.module, [], parameters, buffers)
        for entry in self._entries:
            register_innermost(entry, _MarkerHook(self.groups[REST], config=config), GROUP_OFFLOADING)
        for name, block in (streamable_blocks(self.module) if self.disk is None else {}).items():
            self.groups[name] = self._group(name, block, [block], [], [])
            if name in self.plan.streamed:
                register_innermost(block, _StreamHook(self.groups[name], config, self, name), GROUP_OFFLOADING)
        if not self.plan.stays:
            for group in self.groups.values():
                group.offload_()

    def _group(
        self,
        name: str,
        leader: nn.Module,
        modules: list[nn.Module],
        parameters: Sequence[nn.Parameter],
        buffers: Sequence[torch.Tensor],
    ) -> Any:
        return ModuleGroup(
            modules=modules,
            offload_device=CPU,
            onload_device=self.device,
            offload_leader=leader,
            onload_leader=leader,
            parameters=list(parameters),
            buffers=list(buffers),
            non_blocking=self.stream is not None,
            stream=self.stream,
            record_stream=False,
            low_cpu_mem_usage=False,
            onload_self=True,
            group_id=name,
        )

    def _load(self, name: str) -> None:
        self.groups[name].onload_()
        self.loaded.add(name)

    def _unload(self, name: str) -> None:
        self.groups[name].offload_()
        self.loaded.discard(name)

    def _following(self, name: str) -> str | None:
        if not self.plan.prefetch:
            return None
        names = list(self.plan.streamed)
        index = names.index(name) + 1
        return names[index] if index < len(names) else None

    def _keep_streamed(self, *names: str | None) -> None:
        for other in (self.loaded & self.plan.streamed.keys()) - set(names):
            self._unload(other)


def entries(module: nn.Module) -> list[nn.Module]:
    """Return the modules whose `forward` begins a run: an autoencoder's own is not called to encode or decode."""
    if not isinstance(module, AutoencoderKL):
        return [module]
    parts = (module.quant_conv, module.encoder, module.post_quant_conv, module.decoder)
    return [part for part in parts if part is not None]


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Return a value that changes when weights are added, removed or fused."""
    layers = [layer for layer in module.modules() if hasattr(layer, "merged_adapters")]
    merged = tuple(tuple(layer.merged_adapters) for layer in layers)  # type: ignore[arg-type]
    return sum(1 for _ in module.parameters()), merged
