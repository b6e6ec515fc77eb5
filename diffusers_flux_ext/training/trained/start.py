"""The first values of an adapter: drawn, or from a file of any format."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...checkpoints.layouts import list_keys
from ...lora.errors import LoRAError
from ...lora.files import LoRASource
from ...lora.reading.read import read
from ...lora.updates import Bias, DoRA, LoKr, LoRA, Update
from ..draws import Draws
from .adapters import PARTS, Adapter
from .checks import base_norms


# PEFT's: one of the factors is zero, so that nothing changes until the first update.
_ZERO = ("lora_B.weight", "lora_B.bias", "lokr_w1", "lokr_w1_a")


@torch.no_grad()
def draw_start(adapter: Adapter, seed: int) -> None:
    """Draw the first values. They depend on the seed and the layer's name alone.

    Args:
        adapter (`Adapter`): The adapter; the model computes what it computes without it.
        seed (`int`): The seed.
    """
    draws = Draws(seed)
    for path, part, parameter in adapter.parts():
        if part in _ZERO:
            parameter.zero_()
        elif part == "lora_magnitude_vector.weight":
            parameter.copy_(base_norms(adapter.model, path))
        else:
            generator = draws.generator(f"adapter/{adapter.spell(path, part)}")
            parameter.copy_(_first_factor(adapter, generator, parameter.shape))


def _first_factor(adapter: Adapter, generator: torch.Generator, shape: torch.Size) -> Tensor:
    if adapter.options.init == "gaussian":
        return torch.randn(shape, generator=generator) / shape[0]
    bound = 1 / math.sqrt(shape[1])
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


@torch.no_grad()
def start_from(adapters: Mapping[str, Adapter], source: LoRASource) -> None:
    """Take the first values from a LoRA in any format that this package reads.

    Ranks of the adapters may be larger than those of the file: what the file lacks keeps its first values, and the
    product is the file's. Layers that the file does not have keep theirs.

    Args:
        adapters (`Mapping[str, Adapter]`): The adapters by component, with first values.
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): The file, or its tensors.

    Raises:
        LoRAError: if it cannot be read, has layers that are not trained, or does not fit.
    """
    foreign: list[str] = []
    values: list[tuple[torch.nn.Parameter, Tensor]] = []
    downs: dict[str, Tensor] = {}
    for target, update in read(source).updates():
        component, _, path = target.partition(".")
        adapter = adapters.get(component)
        path = path if adapter is None or path in adapter.sizes else _other_spelling(path)
        if adapter is None or path not in adapter.sizes:
            foreign.append(target)
            continue
        update.check_static(target)
        own, owner = dict(adapter.parts_of(path)), adapter.owners.get(path)
        parts = _fitted(target, update, adapter.scale(path), own)
        if owner and "lora_A.weight" in parts:
            down = downs.setdefault(owner, parts["lora_A.weight"])
            if not torch.equal(down, parts["lora_A.weight"]):
                raise LoRAError(
                    f"`init_from` has different factors `down` for layers that are tied with `{owner}`. Start from a "
                    f"LoRA that was trained on fused layers, or leave `tied` out."
                )
        values += [(own[part], value) for part, value in parts.items()]
    if foreign:
        raise LoRAError(
            f"`init_from` updates {len(foreign)} layers that are not trained: {list_keys(foreign)}. Add them to "
            f"`targets`, or start from a file without them."
        )
    for parameter, value in values:
        parameter.copy_(value)


def _other_spelling(path: str) -> str:
    level = "text_model."
    return path.removeprefix(level) if path.startswith(level) else level + path


def _fitted(target: str, update: Update, scale: float, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of a layer's parameters that give the update."""
    is_lokr = any(part.startswith("lokr_") for part in own)
    update = update if is_lokr else update.to_lora()
    fits = isinstance(update.inner, LoKr) if is_lokr else isinstance(update.inner, LoRA | Bias)
    if not fits or isinstance(update, DoRA) != ("lora_magnitude_vector.weight" in own):
        raise LoRAError(f"`init_from` has a {update.title} for `{target}`. Set `kind` to that of the file.")
    parts = {_spelled(name): value.float() for name, value in update.parts.items()}
    unknown = sorted(parts.keys() - own.keys())
    if unknown:
        raise LoRAError(f"`init_from` has {unknown} for `{target}`, which are not trained. Set `bias`, or `factor`.")
    for part in ("lora_B.weight", "lora_B.bias", "lokr_w1", "lokr_w1_a"):
        if part in parts:
            parts[part] = parts[part] * (update.scale / scale)
    if "lora_magnitude_vector.weight" in parts:
        parts["lora_magnitude_vector.weight"] = parts["lora_magnitude_vector.weight"].flatten()
    return {part: _padded(target, part, value, own[part]) for part, value in parts.items()}


def _spelled(name: str) -> str:
    return next((part for part, canonical in PARTS.items() if canonical == name), name)


def _padded(target: str, part: str, value: Tensor, own: Tensor) -> Tensor:
    """Return a factor of a larger rank: further rows of `down` as drawn, further columns of `up` zero."""
    axis = {"lora_A.weight": 0, "lora_B.weight": 1}.get(part)
    missing = 0 if axis is None else own.shape[axis] - value.shape[axis]
    rest = [size for index, size in enumerate(own.shape) if index != axis]
    if missing < 0 or rest != [size for index, size in enumerate(value.shape) if index != axis]:
        raise LoRAError(
            f"`init_from` has `{part}` of the shape {tuple(value.shape)} for `{target}`, where {tuple(own.shape)} is "
            f"trained. Raise `rank`, or lower the file's with `resize_lora`."
        )
    if not missing or axis is None:
        return value
    added = own.detach()[value.shape[0] :].cpu() if axis == 0 else value.new_zeros(value.shape[0], missing)
    return torch.cat([value, added], dim=axis)
