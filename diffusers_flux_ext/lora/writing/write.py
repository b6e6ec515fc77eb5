"""Writing a LoRA in a layout: `{module: update}` -> keys, alphas and header."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import UnsupportedLoRAError
from ..keys import flatten, layer_in_namespace
from ..layouts import LoRALayout
from ..reading.read import LoRAFile
from ..updates import Bias, Dense, LoRA, Update, join_rows
from ..updates.exact import BlockMatrix, add_exactly, alpha_tensor, multiplied
from ..updates.modules import magnitude_axis
from .header import TargetLayer, write_header


logger = logging.getLogger(__name__)

# LoKr and LoHa of some megabytes may become many gigabytes as LoRAs.
MAX_GROWN = 8 * 2**30

Entries = dict[str, "Tensor | BlockMatrix"]


def write_lora(adapter: LoRAFile, layout: LoRALayout, strict: bool = True) -> tuple[Entries, dict[str, str]]:
    """Write an adapter's tensors in a layout.

    Args:
        adapter (`LoRAFile`): The adapter.
        layout (`LoRALayout`): The layout.
        strict (`bool`, *optional*, defaults to `True`):
            Whether parts that the layout cannot hold are an error; otherwise they are left out with a warning.

    Returns:
        `tuple`: The tensors by key, which share memory with the source and each other, and the header.

    Raises:
        UnsupportedLoRAError: If the layout cannot hold a part and `strict`.
    """
    refusals: list[str] = []
    targets: list[TargetLayer] = []
    grown = 0
    for target in _target_layers(adapter, layout, refusals):
        try:
            targets.append(_fitted(target, layout))
        except UnsupportedLoRAError as error:
            refusals.append(str(error))
            continue
        grown += _size(targets[-1].update) if type(targets[-1].update.inner) is not type(target.update.inner) else 0
        if grown > MAX_GROWN:
            raise UnsupportedLoRAError(
                f"The products of this LoRA take more than {MAX_GROWN >> 30} GiB as LoRAs, which {layout.name!r} "
                "asks for. Write a layout that holds them as they are, such as 'kohya', or lower the rank with "
                "`resize_lora`."
            )
    _report(refusals, layout, strict)
    if not targets:
        raise UnsupportedLoRAError(f"Nothing of this LoRA can be held by the layout {layout.name!r}.")
    metadata, alphas = write_header(adapter, layout, targets)
    if alphas == "all":
        _protect_proj_out(targets, layout)
    entries: Entries = {}
    for target in targets:
        entries.update(_spell(target, layout, alphas))
    return {**entries, **adapter.extras}, metadata


def _size(update: Update) -> int:
    return sum(part.shape.numel() * part.dtype.itemsize for part in update.parts.values())


def _report(refusals: list[str], layout: LoRALayout, strict: bool) -> None:
    if not refusals:
        return
    listed = " ".join(refusals[:10]) + (f" And {len(refusals) - 10} more." if len(refusals) > 10 else "")
    if strict:
        raise UnsupportedLoRAError(
            f"The layout {layout.name!r} cannot hold {len(refusals)} parts of this LoRA. {listed} Pass `strict=False` "
            "to leave them out."
        )
    logger.warning("%d parts are left out, the layout %r cannot hold them. %s", len(refusals), layout.name, listed)


# ---- layers of the target -----------------------------------------------------------------------------------------


class _Cuts:
    """The parts of a file's layers; the last few are cached, since parts are requested one after another."""

    def __init__(self, adapter: LoRAFile) -> None:
        self.adapter = adapter
        self.recent: dict[str, list[Update | None]] = {}

    def __call__(self, where: tuple[str, int]) -> Update | None:
        name, index = where
        if name not in self.recent:
            while len(self.recent) > 8:
                self.recent.pop(next(iter(self.recent)))
            self.recent[name] = self.adapter.layers[name].diffusers_updates()
        return self.recent[name][index]


def _target_layers(adapter: LoRAFile, layout: LoRALayout, refusals: list[str]) -> Iterator[TargetLayer]:
    cuts = _Cuts(adapter)
    seen: set[tuple[str, str]] = set()
    for module, (name, position) in adapter.modules.items():
        stored = adapter.layers[name]
        key = stored.key
        if key.component not in layout.prefixes:
            if (key.component, name) not in seen:
                refusals.append(f"`{name}` belongs to a text encoder.")
            seen.add((key.component, name))
            continue
        form = key.layer.targets[position]
        if key.component != "transformer":
            yield TargetLayer(key.component, _text_body(form.format(key.index), key.component, layout), stored.update,
                          key.layer.is_norm)  # fmt: skip
            continue
        layer = layer_in_namespace(form, layout.namespace)
        if layer is None:
            refusals.append(f"`{form.format(key.index)}` has no name in it.")
            continue
        body = layer.form.format(key.index)
        if (key.component, body) in seen:
            continue
        seen.add((key.component, body))
        members = [adapter.modules.get(f"{key.component}.{target.format(key.index)}") for target in layer.targets]
        same_rows = key.layer.targets == layer.targets and key.layer.swap_halves == layer.swap_halves
        if same_rows and all(member is not None and member[0] == name for member in members):
            yield TargetLayer(key.component, body, stored.update, layer.is_norm)
            continue
        try:
            update = _joined([cuts(member) if member else None for member in members], layer.shares, body)
        except UnsupportedLoRAError as error:
            refusals.append(str(error))
            continue
        if update is not None:
            update = update.swap_rows() if layer.swap_halves else update
            yield TargetLayer(key.component, body, update, layer.is_norm)


def _text_body(name: str, component: str, layout: LoRALayout) -> str:
    if component == "text_encoder" and layout.name != "diffusers" and not name.startswith("text_model."):
        return f"text_model.{name}"
    return name


def _joined(members: list[Update | None], shares: tuple[int, ...], body: str) -> Update | None:
    if len(members) == 1:
        return members[0]
    if all(member is None for member in members):
        return None
    kinds = {type(member.inner) for member in members if member is not None}
    if kinds - {Bias} != {Dense}:
        members = [member and member.to_lora() for member in members]
    return join_rows(members, shares, body)


# ---- what a layout can hold ---------------------------------------------------------------------------------------


def _fitted(target: TargetLayer, layout: LoRALayout) -> TargetLayer:
    update = target.update
    name = f"`{target.body}`"
    update.check_static(target.body)
    if layout.namespace in ("diffsynth", "xlabs"):
        beyond = sorted(update.parts.keys() & {"bias", "diff_b", "magnitude"}) or (["norm"] if target.is_norm else [])
        if beyond:
            raise UnsupportedLoRAError(f"{name} has {beyond}, which its reader drops.")
    if target.is_norm:
        return target
    if not isinstance(update.inner, layout.kinds):
        update = _as_lora(update, name)
    update = update.with_known_scale()
    is_lora = isinstance(update.inner, LoRA)
    if layout.bias is None and "bias" in update.parts:
        update = _bias_as_delta(update)
    elif layout.bias is not None and layout.name == "diffusers" and "diff_b" in update.parts and is_lora:
        update = update.to_lora()
    if layout.alpha == "never" and is_lora:
        update = fold_scale(update)
    return replace(target, update=update)


def _as_lora(update: Update, name: str) -> Update:
    converted = update.to_lora()
    before, after = (sum(part.numel() for part in u.parts.values()) for u in (update, converted))
    if after > 4 * before and after > 2**20:
        logger.warning(
            "%s is a %s, which becomes a LoRA of rank %d, %.1f times its size. `resize_lora` reduces it.",
            name, update.inner.title, converted.rank, after / before,
        )  # fmt: skip
    return converted


def _bias_as_delta(update: Update) -> Update:
    parts = dict(update.parts)
    bias = multiplied(parts.pop("bias"), update.scale)
    parts["diff_b"] = add_exactly(parts["diff_b"], bias) if "diff_b" in parts else bias
    return replace(update, parts=parts)


def fold_scale(update: Update, scale: float = 1.0) -> Update:
    """Return the same LoRA with another `scale`: the difference goes into `up` and `bias`, exactly."""
    if update.scale == scale:
        return replace(update, alpha=None)
    factor = update.scale / scale
    parts = {n: multiplied(_built(p), factor) if n in ("up", "bias") else p for n, p in update.parts.items()}
    return replace(update, parts=parts, scale=scale, alpha=None)


def _built(part: Tensor | BlockMatrix) -> Tensor:
    return part.build() if isinstance(part, BlockMatrix) else part


# ---- alphas ---------------------------------------------------------------------------------------------------------


def _protect_proj_out(targets: list[TargetLayer], layout: LoRALayout) -> None:
    """Give the final `proj_out` the most frequent alpha: diffusers would apply its own to all single blocks."""
    if layout.name != "diffusers":
        return
    layers = [t for t in targets if isinstance(t.update.inner, LoRA) and t.component == "transformer"]
    alphas = Counter(_alpha(target.update) for target in layers if target.body != "proj_out")
    common = alphas.most_common(1)[0][0] if alphas else 0.0
    for target in layers:
        if target.body == "proj_out" and common and _alpha(target.update) != common:
            target.update = fold_scale(target.update, common / (target.update.rank or 1))


def _alpha(update: Update) -> float:
    return update.scale * (update.rank or 1)


def _alpha_entry(update: Update, layout: LoRALayout) -> Tensor | None:
    if update.alpha is not None and layout.name != "diffusers":
        return update.alpha
    if update.rank is None:
        return update.alpha
    value = _alpha(update)
    if update.alpha is None:
        return alpha_tensor(value)
    # diffusers divides in alpha's own dtype, and refuses integers; numbers of 8 bits cannot be divided.
    stored = update.alpha
    if not stored.is_floating_point() or stored.dtype.itemsize == 1:
        return alpha_tensor(value)
    exact = float(stored.reshape(()) / update.rank) == float(stored.reshape(())) / update.rank
    return stored if exact else alpha_tensor(value)


def _spell(target: TargetLayer, layout: LoRALayout, alphas: str) -> Iterator[tuple[str, Any]]:
    body = flatten(target.body) if layout.is_flat else target.body
    name = layout.prefixes[target.component] + body
    update = target.update
    for part, tensor in update.parts.items():
        if part == "reshape_weight":
            continue
        if part == "magnitude":
            yield _spell_magnitude(name, tensor, layout)
        elif part in ("set", "set_weight"):
            yield name + (layout.norm or ".set_weight" if part == "set" else ".set_weight"), tensor
        else:
            suffix = {"down": layout.down, "up": layout.up, "bias": layout.bias}.get(part) or f".{part}"
            yield name + suffix, tensor
    wanted = alphas == "all" or alphas == "needed" and (update.alpha is not None or update.scale != 1)
    if wanted and not target.is_norm and (update.rank is not None or update.alpha is not None):
        alpha = _alpha_entry(update, layout)
        if alpha is not None:
            yield f"{name}.alpha", alpha


def _spell_magnitude(name: str, magnitude: Tensor, layout: LoRALayout) -> tuple[str, Tensor]:
    if magnitude_axis(magnitude) == "in":
        return f"{name}.dora_scale", magnitude
    shape = (-1,) if layout.magnitude == ".lora_magnitude_vector" else (-1, 1)
    return name + (layout.magnitude or ".dora_scale"), magnitude.reshape(shape)
