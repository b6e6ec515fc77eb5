"""Devices of the command line. Importing torch on call is quick compared with diffusers."""

from __future__ import annotations

from .errors import CommandLineError


def check_device(name: str | None) -> None:
    """Raise a [`CommandLineError`] unless this machine has the device.

    Args:
        name (`str`, *optional*): The name, such as `"cuda:1"`; without one the best device is chosen later.
    """
    if name is None:
        return
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise CommandLineError(f"--device {name} is not a device; give for example cuda, cuda:1, mps or cpu") from None
    if device.type == "cpu":
        return
    there = available_devices()
    if not any(found == name or found.partition(":")[0] == name for found in there):
        raise CommandLineError(f"--device {name} is not available: this PyTorch ({torch.__version__}) sees {there}")


def available_devices() -> list[str]:
    """Return the names of all devices that PyTorch can use here, the accelerator's first."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ["cpu"]
    return [*(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())), "cpu"]


def best_device() -> str:
    """Return the accelerator that PyTorch sees, or the CPU."""
    return available_devices()[0].partition(":")[0]
