"""Where models compute, found without diffusers' walks through all modules where nothing is offloaded."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin

from ._compat import execution_device as stock_execution_device


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether a model or a part of it has a hook of accelerate or diffusers."""
    waiting, seen = [module], {module}
    while waiting:
        part = waiting.pop()
        own = vars(part)
        # Each call of a pipeline of diffusers leaves an empty registry.
        if "_hf_hook" in own or getattr(own.get("_diffusers_hook"), "hooks", None):
            return True
        for child in part._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return False


def execution_device(module: torch.nn.Module) -> torch.device:
    """Return where a model's inputs have to be, as `diffusers.utils.torch_utils.get_module_execution_device` does.

    Args:
        module (`torch.nn.Module`): The model; its weights may lie elsewhere while it is offloaded.

    Returns:
        `torch.device`
    """
    return stock_execution_device(module) if is_hooked(module) else _device_of(module)


class ExecutionDeviceMixin:
    """A pipeline that finds where it computes with one look at each module, as long as nothing is offloaded."""

    components: dict[str, Any]

    @property
    def _execution_device(self) -> torch.device:
        parts = self.components
        # In the order in which diffusers asks them.
        models = [parts[name] for name in sorted(parts) if isinstance(parts[name], torch.nn.Module)]
        if not models or any(map(is_hooked, models)):
            return DiffusionPipeline._execution_device.fget(self)
        devices = [_device_of(model) for model in models]
        # Of a pipeline in parts the accelerator's, as `DiffusionPipeline.device` has it.
        return next((device for device in devices if device.type not in ("cpu", "meta")), devices[0])


def _device_of(module: Any) -> torch.device:
    # diffusers' models look for offloading in all their parts once more.
    if getattr(type(module), "device", None) is not ModelMixin.device and hasattr(module, "device"):
        return torch.device(module.device)
    first = next(chain(module.parameters(), module.buffers()), None)
    return stock_execution_device(module) if first is None else first.device
