"""Merging and resizing LoRAs, and extracting one from the difference of two models."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import LoRAError, UnsupportedLoRAError, naming_files
from ..files import LoRASource, is_finite, materialize
from ..keys import parse_lora_key
from ..layouts import LoRALayout, lora_layout
from ..reading.read import LoRAFile, read, read_lora
from ..reading.scale import PEFT_HEADER
from ..updates import Bias, LoRA, StoredLayer, Update, update_of
from ..updates.exact import add_exactly, equal_values, lossless, multiplied, promote
from ..writing.write import Entries, write_lora


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoRAResult:
    """A new LoRA. It unpacks like the result of [`convert_lora`]: `state_dict, metadata = result`.

    Attributes:
        state_dict (`dict[str, torch.Tensor]`):
            The tensors.
        metadata (`dict[str, str]`):
            The header.
        error (`float`):
            `norm(delta W - its approximation) / norm(delta W)` over all layers; 0 if nothing was approximated.
        errors (`dict[str, float]`):
            The same for every layer that was approximated.
    """

    state_dict: dict[str, Tensor]
    metadata: dict[str, str]
    error: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.state_dict, self.metadata))


class ErrorSum:
    """Relative errors of layers, and of all of them together."""

    def __init__(self) -> None:
        self.layers: dict[str, float] = {}
        self.lost = self.total = 0.0

    def add(self, name: str, lost: float, total: float) -> None:
        """Add the squared norms of a layer's error and of the layer."""
        if lost > 0:
            self.layers[name] = math.sqrt(lost / total) if total else 0.0
        self.lost, self.total = self.lost + lost, self.total + total

    def result(self, entries: Entries, metadata: dict[str, str], dtype: torch.dtype | None) -> LoRAResult:
        """Return the LoRA with these errors."""
        error = math.sqrt(self.lost / self.total) if self.total else 0.0
        return LoRAResult(materialize(entries, dtype), metadata, error, self.layers)


def adapter_of(updates: Mapping[str, Update], metadata: Mapping[str, str] | None = None) -> LoRAFile:
    """Return an adapter of diffusers' layers, such as `"transformer.proj_out"`."""
    layers, modules = {}, {}
    for name, update in updates.items():
        key = parse_lora_key(f"{name}.diff")
        if key is None:
            raise LoRAError(f"`{name}` is not a layer of FLUX.1.")
        layers[name] = StoredLayer(key, update)
        modules[name] = (name, 0)
    return LoRAFile(layers, modules, metadata=dict(metadata or {}))


def merge_loras(
    loras: Sequence[LoRASource],
    weights: Sequence[float] | None = None,
    to: str = "diffusers",
    rank: int | None = None,
    strict: bool = True,
    dtype: torch.dtype | None = None,
) -> LoRAResult:
    """Merge LoRAs into one, `delta W = sum(weight * delta W_i)`.

    Without `rank` the result is exact: factors are stacked, and the rank of a layer is the sum of the ranks, or less
    where LoRAs share a factor.

    Args:
        loras (`Sequence`):
            Files, folders or state dicts, each in any layout.
        weights (`Sequence[float]`, *optional*):
            A weight for each; 1 by default.
        to (`str`, *optional*, defaults to `"diffusers"`):
            The layout of the result.
        rank (`int`, *optional*):
            The highest rank of a layer; products of a higher one are cut by their singular values.
        strict (`bool`, *optional*, defaults to `True`):
            As for [`convert_lora`].
        dtype (`torch.dtype`, *optional*):
            A dtype that all factors are cast to.

    Returns:
        `LoRAResult`: The LoRA, and the relative error where it was cut.

    Raises:
        UnsupportedLoRAError: If one has DoRA magnitudes or replaces norms, which cannot be summed.
        LoRAError: If one cannot be read, or numbers do not fit.
    """
    chosen = [1.0] * len(loras) if weights is None else [float(weight) for weight in weights]
    if not loras or len(chosen) != len(loras) or not all(map(math.isfinite, chosen)):
        raise LoRAError(f"{len(loras)} LoRAs and the weights {chosen}; expected one finite number for each LoRA.")
    check_rank(rank)
    layout = lora_layout(to)
    merged: dict[str, Update] = {}
    extras: dict[str, Tensor] = {}
    for source, weight in zip(loras, chosen):
        with naming_files(source):
            adapter = read(source, strict=strict)
            extras = {**adapter.extras, **extras}
            for name, update in adapter.updates():
                module = name.replace("text_encoder.text_model.", "text_encoder.")
                scaled = _weighted(module, update, weight)
                merged[module] = _sum(merged[module], scaled) if module in merged else scaled
    with naming_files(*loras):
        whole = replace(adapter_of(merged, {"merged_weights": str(chosen)}), extras=extras)
        return _resized(whole, layout, rank, None, strict, dtype)


def _resized(
    adapter: LoRAFile,
    layout: LoRALayout,
    rank: int | None,
    energy: float | None,
    strict: bool,
    dtype: torch.dtype | None,
) -> LoRAResult:
    """Return the adapter in a layout, every layer of the layout cut to a rank."""
    errors = ErrorSum()
    if layout.namespace == "diffusers":
        updates = {name: _cut(name, update, rank, energy, errors) for name, update in adapter.updates()}
        adapter = replace(adapter_of(updates, adapter.metadata), extras=adapter.extras)
    elif rank is not None or energy is not None:
        # Fused layers are cut as a whole: their parts, cut separately, would add up their ranks.
        entries, header = write_lora(adapter, layout, strict)
        joined = read_lora(materialize(entries), header)
        layers = {
            name: replace(layer, update=_cut(name, layer.update, rank, energy, errors))
            for name, layer in joined.layers.items()
        }
        adapter = replace(joined, layers=layers)
    entries, header = write_lora(adapter, layout, strict)
    return errors.result(entries, header, dtype)


def check_rank(rank: int | None) -> None:
    """Raise a [`LoRAError`] unless `rank` is a whole number of at least 1, or `None`."""
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise LoRAError(f"`rank` is {rank!r}; expected a whole number of at least 1.")


def check_energy(energy: float | None) -> None:
    """Raise a [`LoRAError`] unless `energy` is in (0, 1], or `None`."""
    if energy is not None and not 0 < energy <= 1:
        raise LoRAError(f"`energy` is {energy}; expected a number in (0, 1].")


def _weighted(name: str, update: Update, weight: float) -> Update:
    update.check_static(name)
    beyond = sorted(update.parts.keys() & {"magnitude", "set", "set_weight"})
    if beyond:
        raise UnsupportedLoRAError(f"`{name}` has {beyond}, which cannot be merged: they do not add up.")
    if isinstance(update.inner, Bias):
        parts = {part: multiplied(value, weight * (update.scale if part == "bias" else 1))
                 for part, value in update.parts.items()}  # fmt: skip
        return update_of(parts)
    pair = update.to_lora()
    return replace(pair, scale=pair.scale * weight, alpha=None)


def _sum(first: Update, second: Update) -> Update:
    """Return the sum of two LoRAs of one layer; the scale of the first stays."""
    if "down" not in first.parts or "down" not in second.parts:
        if "down" in second.parts:
            first, second = second, first
        if first.scale == 0 and "up" in first.parts:
            first = LoRA({**first.parts, "up": torch.zeros_like(first.parts["up"])}, 1.0)
        parts = dict(first.parts)
        for part, value in second.parts.items():
            target = "bias" if part == "diff_b" and "down" in parts else part
            value = multiplied(value, 1 / first.scale) if target == "bias" else value
            parts[target] = add_exactly(parts[target], value) if target in parts else value
        return replace(first, parts=parts)
    scale = first.scale or 1.0
    first_up = first.parts["up"] if first.scale else torch.zeros_like(first.parts["up"])
    second_up = multiplied(second.parts["up"], second.scale / scale)
    downs = [first.parts["down"], second.parts["down"]]
    if equal_values(*downs):
        parts = {"down": downs[0], "up": lossless(first_up.float() + second_up.float(), first_up.dtype)}
    else:
        down = _padded(downs)
        parts = {"down": torch.cat(down), "up": torch.cat([first_up.float(), second_up.float()], dim=1)}
        parts["up"] = lossless(parts["up"], first_up.dtype)
    for update in (first, second):
        if "bias" in update.parts:
            bias = multiplied(update.parts["bias"], update.scale / scale)
            parts["bias"] = add_exactly(parts["bias"], bias) if "bias" in parts else bias
    return LoRA(parts, scale)


def _padded(downs: Sequence[Tensor]) -> list[Tensor]:
    """Pad factors to the widest inputs: a control LoRA's `x_embedder` takes more channels than another's."""
    width = max(down.shape[1] for down in downs)
    dtype = promote(*(down.dtype if down.dtype.itemsize > 1 else torch.float32 for down in downs))
    return [torch.nn.functional.pad(down.to(dtype), (0, width - down.shape[1])) for down in downs]


def resize_lora(
    source: LoRASource,
    rank: int | None = None,
    energy: float | None = None,
    to: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    strict: bool = True,
    dtype: torch.dtype | None = None,
) -> LoRAResult:
    """Lower the ranks of a LoRA by the singular values of every `delta W`, which is the best approximation.

    Fused layers are cut as a whole where the target fuses them too. LoKr, LoHa and dense updates become LoRAs. Layers
    that are small enough stay as they are.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A file, a folder or a state dict in any layout.
        rank (`int`, *optional*):
            The highest rank of a layer.
        energy (`float`, *optional*):
            The share of the squared singular values that is kept, in (0, 1]; each layer gets the lowest rank for it.
        to (`str`, *optional*, defaults to `"diffusers"`):
            The layout of the result.
        metadata, adapter_config, strict, dtype:
            As for [`convert_lora`].

    Returns:
        `LoRAResult`: The LoRA and the relative errors.

    Raises:
        UnsupportedLoRAError: If it has DoRA magnitudes, whose norms depend on the whole product.
        LoRAError: If neither `rank` nor `energy` is given, or they are out of range, or it cannot be read.
    """
    if rank is None and energy is None:
        raise LoRAError("Give `rank`, the highest rank of a layer, or `energy`, the share of it that is kept.")
    check_rank(rank)
    check_energy(energy)
    layout = lora_layout(to)
    with naming_files(source):
        adapter = read(source, metadata, adapter_config, strict=strict)
        # PEFT's config gives the old ranks.
        header = {key: value for key, value in adapter.metadata.items() if key != PEFT_HEADER}
        return _resized(replace(adapter, metadata=header, peft=None), layout, rank, energy, strict, dtype)


def _cut(name: str, update: Update, rank: int | None, energy: float | None, errors: ErrorSum) -> Update:
    """Return the update with a lower rank, if there is one to lower."""
    update.check_static(name)
    if isinstance(update.inner, Bias):
        return update
    if "magnitude" in update.parts:
        if rank is None and energy is None:
            return update
        raise UnsupportedLoRAError(f"`{name}` has DoRA magnitudes, whose norms depend on the whole product.")
    pair = update if isinstance(update, LoRA) else update.to_lora()
    current = pair.rank or 1
    if rank is None and energy is None or energy is None and rank is not None and current <= rank:
        return pair
    up, values, down = product_svd(pair.parts["up"], pair.parts["down"])
    squares = (values.double() * pair.scale) ** 2
    kept = min(rank or current, rank_for_energy(squares, energy), current)
    errors.add(name, float(squares[kept:].sum()), float(squares.sum()))
    if kept == current:
        return pair
    root = values[:kept].sqrt()
    dtype = pair.parts["up"].dtype if pair.parts["up"].dtype.itemsize > 1 else torch.float32
    scale = 1.0 if pair.scale == 0 else pair.scale
    sign = math.copysign(1.0, scale)
    size = abs(scale) ** 0.5
    factors = {"up": (up[:, :kept] * root * size * sign).to(dtype), "down": (root * size)[:, None] * down[:kept]}
    factors["down"] = factors["down"].to(dtype)
    if not all(map(is_finite, factors.values())):
        raise LoRAError(f"The factors of `{name}` at the lower rank have values that {dtype} cannot hold.")
    rest = {part: value for part, value in pair.parts.items() if part not in ("up", "down")}
    if "bias" in rest:
        rest["bias"] = multiplied(rest["bias"], pair.scale)
    if pair.scale == 0:
        factors["up"] = torch.zeros_like(factors["up"])
    return LoRA({**factors, **rest})


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of `up @ down` from matrices of the rank's size, in float32."""
    left, left_core = torch.linalg.qr(up.float())
    right, right_core = torch.linalg.qr(down.float().T)
    try:
        a, values, b = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise LoRAError(f"The singular values cannot be computed; are all numbers finite? {error}") from error
    return left @ a, values, b @ right.T


def rank_for_energy(squares: Tensor, energy: float | None) -> int:
    """Return the lowest number of leading values that sum up to the share `energy` of all."""
    total = float(squares.sum())
    if energy is None or total == 0:
        return max(1, len(squares)) if energy is None else 1
    shares = squares.cumsum(0) / total
    return min(int((shares < energy - 1e-12).sum()) + 1, len(squares))
