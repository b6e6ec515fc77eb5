"""Inputs of a call with the names of DiffSynth-Studio, and its function to read weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..checkpoints.messages import list_keys
from ..checkpoints.reading import read_weights_file


_WRAPPERS = ("state_dict", "module", "model_state")


@dataclass
class ControlNetInput:
    """One ControlNet's part in a call.

    Args:
        controlnet_id (`int`, defaults to 0): Which of the ControlNets, in the order of their files.
        scale (`float`, defaults to 1.0): Factor of its residuals.
        start (`float`, defaults to 1.0):
            Where it begins to act. Progress falls from 1 at the first step to 0 at the last one.
        end (`float`, defaults to 0.0): Where it ceases to act, both ends included.
        image (`PIL.Image.Image`): The control image.
        inpaint_image (`PIL.Image.Image`, *optional*): Has no effect, as in the reference.
        inpaint_mask (`PIL.Image.Image`, *optional*): White is redrawn, for inpainting ControlNets.
        processor_id (`str`, *optional*): What the image shows, for union ControlNets: `"canny"`, `"depth"` and so on.
    """

    controlnet_id: int = 0
    scale: float = 1.0
    start: float = 1.0
    end: float = 0.0
    image: Image.Image | None = None
    inpaint_image: Image.Image | None = None
    inpaint_mask: Image.Image | None = None
    processor_id: str | None = None


def load_state_dict(
    file_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    pin_memory: bool = False,
    verbose: int = 0,
) -> dict[str, Any]:
    """Read the tensors of one file, or of several shards.

    Args:
        file_path (`str`, `os.PathLike` or a list of them): Safetensors files, or pickles of tensors only.
        torch_dtype (`torch.dtype`, *optional*): Data type of the tensors; the file's by default.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where they go.
        pin_memory (`bool`, defaults to `False`): Whether to put them into pinned memory.
        verbose (`int`, defaults to 0): As in the reference; nothing is printed here.

    Returns:
        `dict[str, torch.Tensor]`, or nested ones as in the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file cannot be read, or two shards hold the same key.
    """
    files = [file_path] if isinstance(file_path, (str, os.PathLike)) else list(file_path)
    state_dict: dict[str, Any] = {}
    for file in files:
        read = _unwrapped(read_weights_file(file))
        twice = state_dict.keys() & read.keys()
        if twice:
            raise ValueError(f"`{file}` holds keys that other shards hold, too: {list_keys(twice)}.")
        state_dict |= read

    def placed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: placed(inner) for key, inner in value.items()}
        if value.is_meta:
            raise ValueError(f"`{files[0]}` holds tensors without values. Was it saved from the meta device?")
        moved = value.to(device=device, dtype=torch_dtype)
        return moved.pin_memory() if pin_memory else moved

    return placed(state_dict)


def _unwrapped(read: Mapping[str, Any]) -> Mapping[str, Any]:
    only = next(iter(read)) if len(read) == 1 else None
    return read[only] if only in _WRAPPERS and isinstance(read[only], Mapping) else read
