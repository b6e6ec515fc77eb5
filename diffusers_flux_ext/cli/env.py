"""`flux-ext env`: what a bug report needs, without anything that identifies the machine or its user."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any


GIB = 2**30
REQUIRED = ("diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface-hub", "numpy", "pillow")
OPTIONAL = (
    "tokenizers", "sentencepiece", "torchvision", "xformers", "triton", "flash-attn", "sageattention", "kernels",
    "bitsandbytes", "optimum-quanto", "torchao", "gguf", "cache-dit", "deepspeed", "insightface", "onnxruntime",
    "onnxruntime-gpu", "diffsynth",
)  # fmt: skip
# Settings that affect results or speed; none of them holds a path or a secret.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "DIFFUSERS_ATTN_BACKEND", "HF_HUB_OFFLINE", "MKL_CBWR",
    "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_NO_CUDA_MEMORY_CACHING",
)  # fmt: skip


def add_env_command(commands: Any) -> argparse.ArgumentParser:
    """Add `env` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "env",
        help="versions, devices and memory, for a bug report",
        description="Print what a bug report needs: versions, devices, memory. No paths, names or tokens are in it.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def run_env(args: argparse.Namespace) -> int:
    """Print the report.

    Args:
        args (`argparse.Namespace`): `json`.

    Returns:
        `int`: the exit code.
    """
    facts = describe_environment()
    if args.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        spelled = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
        sys.stdout.write(f"{name.ljust(width)}  {spelled or 'none'}\n")
    return 0


def package_version() -> str:
    """Return this package's version."""
    return installed("diffusers-flux-ext") or "unknown (not installed)"


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or `None`."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def describe_environment() -> dict[str, Any]:
    """Collect versions, devices, memory and settings.

    Returns:
        `dict[str, Any]`: texts, or dicts of names and texts.
    """
    return {
        "diffusers_flux_ext": package_version(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        **_torch(),
        "memory": _memory(),
        "libraries": {name: installed(name) or "missing" for name in REQUIRED},
        "optional": {name: found for name in OPTIONAL if (found := installed(name))},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        # A broken installation; the message would contain paths.
        return {"torch": f"{installed('torch') or 'missing'}, cannot be imported ({type(error).__name__})"}
    built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    builds = [f"{name} {found}" for name, found in built.items() if found] or ["without CUDA"]
    if torch.backends.cudnn.is_available():
        builds.append(f"cuDNN {torch.backends.cudnn.version()}")
    return {"torch": ", ".join([torch.__version__, *builds]), "devices": _devices()}


def _devices() -> dict[str, str]:
    import torch

    from .devices import available_devices

    found = {}
    for name in available_devices():
        if name.startswith("cuda"):
            card = torch.cuda.get_device_properties(name)
            capability = "" if torch.version.hip else f", capability {card.major}.{card.minor}"
            found[name] = f"{card.name}{capability}, {card.total_memory / GIB:.1f} GiB"
        elif name == "cpu":
            kernels = torch.backends.cpu.get_cpu_capability()
            found[name] = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {kernels} kernels"
        else:
            found[name] = "available"
    return found


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB available"
