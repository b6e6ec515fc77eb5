"""Tables of key names: how the tensors of one model are called in several layouts, and the plan to rename them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from .layouts import PREFIX, Shapes, TensorRecipe
from .messages import list_keys
from .sizes import check_dimensions, is_index


# ComfyUI writes the first in checkpoints and the second in files of the transformer alone.
TRANSFORMER_PREFIXES = (PREFIX, "diffusion_model.")
# Where ComfyUI and latent diffusion keep the other models, and what lies beside them: schedules and tokenizers.
OTHER_MODELS = (
    *("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner."),
    *("model_ema.", "alphas_", "betas", "sqrt_", "log_one_minus", "posterior_", "spiece_model", "model_sampling."),
)


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


def find_prefixes(keys: Iterable[str], marks: tuple[str, ...]) -> list[str]:
    """Return what stands before the keys of each model of a kind in a file.

    Args:
        keys (`Iterable[str]`): All keys of the file.
        marks (`tuple[str, ...]`): Keys that only such a model has, one of each of its layouts.

    Returns:
        `list[str]`: sorted; `""` for a model whose keys have no prefix.
    """
    return sorted({key.removesuffix(mark) for key in keys for mark in marks if f".{key}".endswith(f".{mark}")})


def own_keys(what: str, keys: Iterable[str], marks: tuple[str, ...], prefix: str | None = None) -> dict[str, str]:
    """Return the keys of one model of a file that may hold others.

    Args:
        what (`str`): The model, for errors.
        keys (`Iterable[str]`): All keys of the file.
        marks (`tuple[str, ...]`): See [`find_prefixes`]. Without any of them all keys are the model's.
        prefix (`str`, *optional*): How the prefix begins, where a file holds several.

    Returns:
        `dict[str, str]`: the keys by what they are without the prefix.

    Raises:
        ValueError: if there are several such models.
    """
    keys = list(keys)
    found = [each for each in find_prefixes(keys, marks) if each.startswith(prefix or "")]
    if len(found) > 1:
        raise ValueError(f"The file holds several of {what}, with the prefixes {found}. Pass `prefix=` with one.")
    start = found[0] if found else prefix or ""
    # Beside a model without a prefix there may be others that have one.
    others = () if start else (*TRANSFORMER_PREFIXES, *OTHER_MODELS)
    return {key.removeprefix(start): key for key in keys if key.startswith(start) and not key.startswith(others)}


def plan_by_tables(
    what: str,
    shapes: Shapes,
    tables: Iterable[KeyTable],
    marks: tuple[str, ...] = (),
    prefix: str | None = None,
) -> dict[str, TensorRecipe]:
    """Plan how a model's tensors are taken from a file, in the layout that knows most of its keys.

    Args:
        what (`str`): The model, for errors.
        shapes (`Mapping[str, Sequence[int]]`): Shapes by key.
        tables (`Iterable[KeyTable]`): The layouts.
        marks (`tuple[str, ...]`): See [`own_keys`].
        prefix (`str`, *optional*): See [`own_keys`].

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each of our keys. Its shape may lack axes of size one of the source.

    Raises:
        ValueError: if no layout knows a key, a key is unknown, or there are several such models.
    """
    tables, bare = list(tables), own_keys(what, shapes, marks, prefix)
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


def sized(what: str, plan: Mapping[str, TensorRecipe], dimensions: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors that determine a model's sizes.

    Args:
        what (`str`): The model, for errors.
        plan (`Mapping[str, TensorRecipe]`): From [`plan_by_tables`].
        dimensions (`Mapping[str, int]`): Number of dimensions of each; further ones before them must be of size one.

    Returns:
        `list[tuple[int, ...]]`: in this order.

    Raises:
        ValueError: if some are missing, empty, or have another number of dimensions.
    """
    missing = [key for key in dimensions if key not in plan]
    if missing:
        raise ValueError(f"The file of {what} is not complete: missing are {list_keys(missing)}.")
    shapes = {key: plan[key].shape for key in dimensions}
    for key, count in dimensions.items():
        while len(shapes[key]) > count and shapes[key][0] == 1:
            shapes[key] = shapes[key][1:]
    check_dimensions(shapes, dimensions)
    return list(shapes.values())
