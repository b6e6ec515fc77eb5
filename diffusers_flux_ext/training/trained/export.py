"""Writing what was trained: LoRAs in every layout, and modules as folders and as published files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from ...checkpoints.reading import read_json
from ...checkpoints.writing import save_tensors, written_at_once
from ...lora.errors import UnsupportedLoRAError
from ...lora.files import save_lora
from ...lora.layouts import LoRALayout, lora_layout
from ...lora.tools.algebra import adapter_of
from ...lora.updates import Bias, Dense, LoRA, Update, update_of
from ...lora.writing.write import MAX_GROWN, write_lora
from .protocol import is_writer


Files = Callable[[Any, Mapping[str, Tensor]], Mapping[str, Mapping[str, Tensor]]]
NOTES = "training.json"
"""The file in an exported folder that says how the module was trained."""


def export_lora(
    updates: Mapping[str, Update],
    path: str | os.PathLike[str],
    to: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA in a layout, whole or not at all.

    Args:
        updates (`Mapping[str, Update]`): What it does to each layer, by diffusers' names with the component.
        path (`str` or `os.PathLike`): The file; an existing one is replaced.
        to (`str`, defaults to `"diffusers"`):
            `"diffusers"` (PEFT's names), `"kohya"`, `"bfl"` (ComfyUI), `"diffsynth"` (the reference), `"onetrainer"`
            or `"xlabs"`; see [`convert_lora`].
        metadata (`Mapping[str, str]`, *optional*): Entries of the header, such as those of [`ExportInfo`].
        dtype (`torch.dtype`, *optional*): Data type of the factors; that of the updates by default.

    Raises:
        LoRAError: if the layout is unknown or cannot hold a part, or the file cannot be written.
    """
    entries, header = write_lora(adapter_of(updates, metadata), lora_layout(to))
    save_lora(path, entries, header, overwrite=True, dtype=dtype)


def check_format(updates: Mapping[str, Update], layout: LoRALayout) -> None:
    """Check, without computing what is written, that a layout can hold a LoRA.

    Args:
        updates (`Mapping[str, Update]`): What it does to each layer.
        layout (`LoRALayout`): The layout.

    Raises:
        UnsupportedLoRAError: if it cannot hold a part, or products of factors would become too large in it.
    """
    # Where layers are fused, other products become LoRAs, too.
    kept = layout.kinds if layout.namespace == "diffusers" else (LoRA, Dense, Bias)
    converted = [update for update in updates.values() if not isinstance(update.inner, kept)]
    size = sum(_bytes_as_lora(update) for update in converted)
    if size > MAX_GROWN:
        raise UnsupportedLoRAError(
            f"{converted[0].inner.title} becomes a LoRA of {size / 2**30:.1f} GiB in the layout {layout.name!r}; "
            f"{MAX_GROWN >> 30} GiB are written at most. Write 'onetrainer', which holds it as it is."
        )
    write_lora(adapter_of({name: _stand_in(update) for name, update in updates.items()}), layout)


def _bytes_as_lora(update: Update) -> int:
    inner = 1
    for factor in ("lokr_w1", "lokr_w2"):
        inner *= min(update.parts[factor].shape) if factor in update.parts else update.parts[f"{factor}_b"].shape[0]
    rows, columns = update.out_features, update.in_features or 0
    return 4 * min(inner, rows, columns) * (rows + columns)


def _stand_in(update: Update) -> Update:
    """Return an update of rank 1 with the same shape and the same parts beside the product."""
    factors = {"down": torch.zeros(1, update.in_features or 1), "up": torch.zeros(update.out_features, 1)}
    beside = {name: part for name, part in update.parts.items() if name in ("bias", "magnitude")}
    return update_of({**factors, **beside})


def export_module(
    module: Any,
    folder: str | os.PathLike[str],
    name: str,
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    files: Files | None = None,
    single_file: bool = False,
) -> list[Path]:
    """Write a module as `save_pretrained` does, and in the layout of its published files if there is one.

    Where there are several processes, the first one writes.

    Args:
        module (`torch.nn.Module`): A module of diffusers' or transformers' kind, with a config.
        folder (`str` or `os.PathLike`): Where to; the module's folder and its files are made in it.
        name (`str`): Name of the module's folder, which is replaced if it was written by this function.
        metadata (`Mapping[str, str]`): Entries of the files' headers.
        tensors (`Mapping[str, torch.Tensor]`, *optional*): Its weights by name; the module's own by default.
        files (`Callable`, *optional*): Spells the weights as published; see [`Trainable`].
        single_file (`bool`, defaults to `False`): Whether the published layout is written, too.

    Returns:
        `list[Path]`: the folder, then the files.

    Raises:
        OSError: if something cannot be written.
    """
    weights = dict(module.state_dict() if tensors is None else tensors)
    target = Path(folder) / name
    spelled: Mapping[str, Mapping[str, Tensor]] = {}
    if single_file:
        spelled = files(module, weights) if files else {f"{name}.safetensors": weights}
    if is_writer():
        _write_folder(target, lambda temporary: _save(module, weights, temporary, dict(metadata)))
        for file, content in spelled.items():
            save_tensors({key: value.contiguous() for key, value in content.items()}, target.with_name(file), metadata)
    return [target, *(target.with_name(file) for file in spelled)]


def _write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder at once; one that was written so before is replaced when the new one is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.new") if _is_own(target) else target
    if fresh != target and _is_own(fresh):
        shutil.rmtree(fresh)
    with written_at_once(fresh) as temporary:
        temporary.mkdir()
        write(temporary)
    if fresh != target:
        shutil.rmtree(target)
        os.replace(fresh, target)


def _is_own(folder: Path) -> bool:
    return (folder / NOTES).is_file()


def _save(module: Any, weights: Mapping[str, Tensor], folder: Path, metadata: dict[str, str]) -> None:
    if hasattr(module, "save_config"):
        module.save_config(folder)
        pattern = "diffusion_pytorch_model{suffix}.safetensors"
        save_torch_state_dict(
            dict(weights), folder, filename_pattern=pattern, max_shard_size="10GB", metadata=metadata
        )
    else:
        module.save_pretrained(folder, state_dict=dict(weights))
    config = read_json(folder / "config.json")
    # Where the model was loaded from.
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / NOTES).write_text(json.dumps(metadata, indent=2, sort_keys=True) + "\n")
