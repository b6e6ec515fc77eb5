"""Tables of key names: how the tensors of one model are called in several layouts, and the plan to rename them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from .layouts import Shapes, TensorRecipe
from .messages import list_keys
from .sizes import is_index


@dataclass(frozen=True)
class KeyTable:
    """One layout of a model's file.

    Attributes:
        name (`str`): The layout's name, for errors.
        keys (`Mapping[str, tuple[str, ...]]`):
            Our keys by the file's, both with `{}` for the index of a block. A fused tensor has several parts, which
            share its rows equally.
        dropped (`tuple[str, ...]`): Beginnings of keys that belong to something else and are left out.
        literal (`bool`): Whether numbers in the keys are part of the names, without `{}`.
    """

    name: str
    keys: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...] = ()
    literal: bool = False

    def form(self, key: str) -> tuple[str, tuple[str, ...]]:
        """Return a key as the table spells it, and the numbers that were taken out."""
        return (key, ()) if self.literal else split_indices(key)

    def known(self, keys: Iterable[str]) -> int:
        """Count the keys of this layout."""
        return sum(self.form(key)[0] in self.keys for key in keys)


def split_indices(key: str) -> tuple[str, tuple[str, ...]]:
    """Split a key into its form with `{}` for every number between dots, and these numbers."""
    parts = key.split(".")
    indices = tuple(part for part in parts if is_index(part))
    return ".".join("{}" if is_index(part) else part for part in parts), indices


def spelled(
    rows: Iterable[tuple[str, str]], suffixes: Collection[str], ours: str = "", theirs: str = ""
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Spell a table of modules, ours and theirs, with prefixes and with the names of their tensors.

    Args:
        rows (`Iterable[tuple[str, str]]`): Our name and the file's name of each module.
        suffixes (`Collection[str]`): Names of tensors, such as `"weight"`.
        ours (`str`): Prefix of our names.
        theirs (`str`): Prefix of the file's names.

    Yields:
        `tuple`: items of [`KeyTable.keys`].
    """
    for own, other in rows:
        for suffix in suffixes:
            yield f"{theirs}{other}.{suffix}", (f"{ours}{own}.{suffix}",)


def strip_prefix(shapes: Shapes, prefixes: Iterable[str]) -> dict[str, str]:
    """Return the file's keys by their bare names, without the first of the prefixes that any key has.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): Shapes by key.
        prefixes (`Iterable[str]`): What may stand before the keys of the model; `""` takes all keys.

    Returns:
        `dict[str, str]`: empty if no key has any of the prefixes.
    """
    for prefix in prefixes:
        found = {key.removeprefix(prefix): key for key in shapes if key.startswith(prefix)}
        if found:
            return found
    return {}


def plan_by_tables(
    what: str, shapes: Shapes, tables: Iterable[KeyTable], prefixes: Iterable[str] = ("",)
) -> dict[str, TensorRecipe]:
    """Plan how a model's tensors are taken from a file, in the layout that knows most of its keys.

    Args:
        what (`str`): The model, for errors.
        shapes (`Mapping[str, Sequence[int]]`): Shapes by key.
        tables (`Iterable[KeyTable]`): The layouts.
        prefixes (`Iterable[str]`): See [`strip_prefix`].

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each of our keys. Its shape may lack axes of size one of the source.

    Raises:
        ValueError: if no layout knows a key, or a key is unknown.
    """
    tables, bare = list(tables), strip_prefix(shapes, prefixes)
    table = max(tables, key=lambda each: each.known(bare))
    if not table.known(bare):
        names = ", ".join(each.name for each in tables)
        raise ValueError(f"This is not a file of {what} in any known layout ({names}): it has {list_keys(shapes)}.")
    plan: dict[str, TensorRecipe] = {}
    unknown = []
    for key, source in bare.items():
        form, indices = table.form(key)
        if form in table.keys:
            _add(plan, table.keys[form], indices, source, tuple(shapes[source]))
        elif not key.startswith(table.dropped):
            unknown.append(source)
    if unknown:
        raise ValueError(f"Keys that {what} does not have in the layout of {table.name}: {list_keys(unknown)}.")
    return plan


def _add(
    plan: dict[str, TensorRecipe],
    parts: tuple[str, ...],
    indices: tuple[str, ...],
    source: str,
    shape: tuple[int, ...],
) -> None:
    if len(parts) == 1:
        plan[parts[0].format(*indices)] = TensorRecipe((source,), shape)
        return
    rows, rest = divmod(shape[0] if shape else 1, len(parts))
    if rest:
        raise ValueError(f"`{source}` has the shape {shape}; its rows should be a multiple of {len(parts)}.")
    for place, part in enumerate(parts):
        taken = (place * rows, (place + 1) * rows)
        plan[part.format(*indices)] = TensorRecipe((source,), (rows, *shape[1:]), taken)


def build_weights(
    plan: Mapping[str, TensorRecipe], wanted: Mapping[str, torch.Size], read: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Carry a plan out. Tensors share memory with the source.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_by_tables`].
        wanted (`Mapping[str, torch.Size]`): Shapes of the model's tensors; some files have further axes of size one.
        read (`Callable`): Gives the file's tensor of a key.

    Returns:
        `dict[str, torch.Tensor]`
    """
    weights = {}
    for key, recipe in plan.items():
        tensor, shape = recipe.build(read), wanted.get(key)
        squeezed = shape is not None and tensor.numel() == prod(shape) and _bare(tensor.shape) == _bare(shape)
        weights[key] = tensor.reshape(shape) if squeezed and shape is not None else tensor
    return weights


def _bare(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]
