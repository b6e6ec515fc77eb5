"""Extracting a LoRA from the difference of two models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...checkpoints.layouts import list_keys
from ..errors import LoRAError, naming_files
from ..layouts import lora_layout
from ..updates import Update, update_of
from ..writing.write import write_lora
from .algebra import ErrorSum, LoRAResult, adapter_of, check_energy, check_rank
from .transformer import OpenedTransformer, open_transformer


# Where a truncated product is computed exactly, and where by random projection.
EXACT_SVD_SIZE = 1024


def extract_lora(
    base: Any,
    tuned: Any,
    rank: int,
    energy: float | None = None,
    to: str = "diffusers",
    dtype: torch.dtype | None = None,
) -> LoRAResult:
    """Extract a LoRA from the difference between a tuned transformer and its base.

    Layers that do not differ are left out; biases that differ are kept as biases of the LoRA. Norms that differ are
    kept where the layout can hold them, and are an error otherwise.

    Args:
        base, tuned (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            Transformers in diffusers', Black Forest Labs' or DiffSynth's layout: files, folders or state dicts.
        rank (`int`):
            The highest rank of a layer.
        energy (`float`, *optional*):
            The share of the squared singular values to keep, in (0, 1].
        to (`str`, *optional*, defaults to `"diffusers"`):
            The layout of the LoRA.
        dtype (`torch.dtype`, *optional*, defaults to the dtype of `tuned`):
            The dtype of the factors.

    Returns:
        `LoRAResult`: The LoRA and the relative errors.

    Raises:
        LoRAError: If the models do not have the same layers, or do not differ.
    """
    check_rank(rank)
    check_energy(energy)
    target = lora_layout(to)
    first, second = (open_transformer(source, "diffusers") for source in (base, tuned))
    with naming_files(base, tuned):
        updates, errors = _differences(first, second, rank, energy, dtype)
        entries, header = write_lora(adapter_of(updates), target)
        return errors.result(entries, header, None)


def _differences(
    first: OpenedTransformer, second: OpenedTransformer, rank: int, energy: float | None, dtype: torch.dtype | None
) -> tuple[dict[str, Update], ErrorSum]:
    if first.shapes != second.shapes:
        odd = {key for key in first.shapes.keys() | second.shapes.keys()
               if first.shapes.get(key) != second.shapes.get(key)}  # fmt: skip
        raise LoRAError(f"The models differ in {len(odd)} layers or their shapes: {list_keys(odd)}.")
    updates: dict[str, dict[str, Tensor]] = {}
    errors = ErrorSum()
    for key in first.shapes:
        stored = second.read(key)
        difference = stored.float() - first.read(key).float()
        if not difference.any():
            continue
        if not difference.isfinite().all():
            raise LoRAError(f"`{key}` has NaN or infinite values, or the difference of the models has.")
        kind = dtype or (stored.dtype if stored.dtype.itemsize > 1 else torch.bfloat16)
        module, _, which = key.rpartition(".")
        parts = updates.setdefault(f"transformer.{module}", {})
        if which == "bias":
            parts["diff_b"] = difference.to(kind)
        elif difference.ndim == 1:
            parts["diff"] = difference.to(kind)
        else:
            parts.update(_extracted(module, difference, rank, energy, kind, errors))
    if not updates:
        raise LoRAError("The two models do not differ.")
    return {name: update_of(parts) for name, parts in updates.items()}, errors


def _extracted(
    name: str, difference: Tensor, rank: int, energy: float | None, dtype: torch.dtype, errors: ErrorSum
) -> dict[str, Tensor]:
    if min(difference.shape) <= max(EXACT_SVD_SIZE, 4 * rank):
        up, values, down = torch.linalg.svd(difference, full_matrices=False)
    else:
        # Random projections with power iterations: the leading values to about 1e-3, in a fraction of the time.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            up, values, right = torch.svd_lowrank(difference, q=rank + 16, niter=4)
        down = right.T
    total = float(difference.double().square().sum())
    squares = values.double() ** 2
    kept = min(rank, len(values), int((squares.cumsum(0) < (energy or 1.0) * total - 1e-12 * total).sum()) + 1)
    root = values[:kept].sqrt()
    factors = {"up": (up[:, :kept] * root).to(dtype), "down": (root[:, None] * down[:kept]).to(dtype)}
    lost = float((difference - factors["up"].float() @ factors["down"].float()).double().square().sum())
    errors.add(name, lost, total)
    return factors
