"""Which fields of a condition may differ between samples: those that its methods do not read again at each step."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields

from ..condition import FluxCondition


EVERY_STEP = ("prepare", "contribute", "replace_prompt")
"""The methods that run in training, on what `encode` returned, without a sample's inputs."""


def check_columns(cls: type[FluxCondition], inputs: Mapping[str, str]) -> None:
    """Refuse columns for fields whose default training would take instead, since only `encode` sees a sample's inputs.

    Args:
        cls (`type`): The condition's class.
        inputs (`Mapping[str, str]`): Columns by field.

    Raises:
        ValueError: if such a field has a column.
    """
    read = fields_read(cls, EVERY_STEP)
    kept = {each.name for each in fields(cls) if each.name in read and each.default not in (MISSING, None)}
    for name, column in inputs.items():
        if name.partition(".")[0] in kept:
            raise ValueError(
                f"`{name}` of {cls.__name__} is read at each step, when the samples of a batch are together, so it "
                f"cannot come from the column {column!r}. Give one value for all samples in `options`."
            )


def fields_read(cls: type[FluxCondition], methods: Iterable[str]) -> set[str]:
    """Return the fields that methods of a condition read, themselves or through its other methods and properties.

    Args:
        cls (`type`): The condition's class.
        methods (`Iterable[str]`): Names of methods.

    Returns:
        `set[str]`: what functions outside of the class read of it is not among them.
    """
    known = {each.name for each in fields(cls)}
    found: set[str] = set()
    waiting, seen = list(methods), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            read = _attributes(getattr(cls, name))
            found |= read & known
            waiting += [each for each in read - known if _is_code(getattr(cls, each, None))]
    return found


def _is_code(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, property)


def _attributes(member: object) -> set[str]:
    """Return the attributes of `self` that a function names; none if its source is not at hand."""
    function = member.fget if isinstance(member, property) else member
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return set()
    named = [each for each in ast.walk(tree) if isinstance(each, ast.Attribute)]
    return {each.attr for each in named if isinstance(each.value, ast.Name) and each.value.id == "self"}
