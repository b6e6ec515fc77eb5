"""What a file of results was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

import torch


LIBRARIES = ("torch", "triton", "diffusers", "transformers", "accelerate", "peft", "diffusers-flux-ext")
OPTIONAL = ("diffsynth", "torchao", "bitsandbytes", "gguf", "optimum-quanto", "cache-dit", "flash-attn", "xformers")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed, by their names."""
    found = {}
    for name in (*LIBRARIES, *OPTIONAL):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(device: torch.device) -> dict[str, Any]:
    """Return the device, its memory, and the versions that its figures depend on."""
    said: dict[str, Any] = {"device": platform.processor() or platform.machine(), "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        said |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
        }
    return {**said, "versions": versions()}


def today() -> str:
    """Return today's date, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def in_words(machine: dict[str, Any]) -> str:
    """Return the device and the versions as one line."""
    memory = f", {machine['memory_gib']:g} GiB" if "memory_gib" in machine else ""
    cuda = f", CUDA {machine['cuda']}" if machine.get("cuda") else ""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['device']}{memory}{cuda}, Python {machine['python']}, {libraries}"
