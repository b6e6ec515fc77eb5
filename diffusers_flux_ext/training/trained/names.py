"""Choosing parts of a model by their names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


REGEX = "re:"
_RANGE = re.compile(r"(.*)\.(\d+)-(\d+)")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the Linears of a model by name, quantised ones and those with adapters included.

    Args:
        model (`torch.nn.Module`): The model.

    Returns:
        `dict[str, torch.nn.Module]`: in the model's order, without what adapters consist of.
    """
    found: dict[str, nn.Module] = {}
    wrapper = ""
    for name, layer in model.named_modules():
        if wrapper and name.startswith(wrapper):
            continue
        if isinstance(layer, BaseTunerLayer):
            wrapper = f"{name}."
            layer = layer.get_base_layer()
        if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
            found[name] = model.get_submodule(name)
    return found


def select(names: Iterable[str], patterns: Sequence[str], what: str, of: str) -> list[str]:
    """Return the names that any of several patterns matches.

    Args:
        names (`Iterable[str]`): Dotted names.
        patterns (`Sequence[str]`):
            Each a whole name, the name of something that contains the named, a glob (`*.attn.to_q`; `*` matches dots,
            too), a range of blocks (`transformer_blocks.0-5`), or `re:` and a regular expression for whole names.
        what (`str`): The argument, for errors.
        of (`str`): What is named, for errors, such as `"Linear of FluxTransformer2DModel"`.

    Returns:
        `list[str]`: in the order of `names`.

    Raises:
        TypeError: if `patterns` is not a list of strings.
        ValueError: if a pattern matches nothing, or is not a regular expression.
    """
    known = list(names)
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"`{what}` is {patterns!r}; expected a list of names and patterns.")
    chosen: set[str] = set()
    for pattern in patterns:
        for part in _expanded(pattern):
            found = [name for name in known if matches(name, part, what)]
            if not found:
                raise ValueError(_unmatched(known, part, what, of))
            chosen.update(found)
    return [name for name in known if name in chosen]


def matches(name: str, pattern: str, what: str = "pattern") -> bool:
    """Whether a pattern without a range matches a name; see [`select`]."""
    if pattern.startswith(REGEX):
        try:
            return re.fullmatch(pattern.removeprefix(REGEX), name) is not None
        except re.error as error:
            raise ValueError(f"`{what}` has {pattern!r}, which is not a regular expression: {error}.") from error
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.startswith(f"{pattern}.")


def _expanded(pattern: str) -> list[str]:
    found = None if pattern.startswith(REGEX) else _RANGE.fullmatch(pattern)
    if found is None:
        return [pattern]
    start, first, last = found.group(1), int(found.group(2)), int(found.group(3))
    return [f"{start}.{index}" for index in range(first, last + 1)] or [pattern]


def _unmatched(names: Sequence[str], pattern: str, what: str, of: str) -> str:
    message = f"`{what}` has {pattern!r}, which matches no {of}."
    ends = [name for name in names if name.endswith(f".{pattern}")]
    if ends:
        return f"{message} Names are whole names: write '*.{pattern}' for {ends[0]!r} and {len(ends) - 1} more."
    return f"{message} The nearest are {', '.join(map(repr, nearest(names, pattern)))}."


def nearest(names: Sequence[str], pattern: str, count: int = 3) -> list[str]:
    """Return the names that a pattern may have meant.

    Args:
        names (`Sequence[str]`): Dotted names.
        pattern (`str`): What matches none of them.
        count (`int`, defaults to 3): How many to return at most.

    Returns:
        `list[str]`: the most similar first.
    """
    meant = pattern.removeprefix(REGEX).replace("\\", "").strip("*.^$()")
    depth = meant.count(".") + 1
    parts = [name.split(".") for name in names]
    # Ends of names stand for one of the layers that end so; blocks are alike but for their number.
    ends = {".".join(each[-depth:]): ".".join(each) for each in reversed(parts)}
    starts = {start: start for each in parts if (start := ".".join(each[:depth]))}
    spelled = {**ends, **starts}
    close = difflib.get_close_matches(meant, spelled, n=4 * count, cutoff=0.4) or list(spelled)[:count]
    return list(dict.fromkeys(spelled[each] for each in close))[:count]
