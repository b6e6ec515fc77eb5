"""From flags to a job's entries."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from ..errors import CommandLineError
from .table import Flag, all_flags
from .values import put


CONDITIONS = "conditions."


def with_flags(content: dict[str, Any], args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Return a job's entries with those of the flags that are given.

    Args:
        content (`dict[str, Any]`): The entries to begin with.
        args (`argparse.Namespace`): The command line.
        base (`Path`): The folder that the job's files are relative to.

    Returns:
        `dict[str, Any]`

    Raises:
        CommandLineError: if flags do not fit each other.
    """
    found = deepcopy(content)
    for flag in all_flags():
        value = getattr(args, flag.dest)
        if value is not None:
            _set(found, flag, _based(value, base) if flag.is_path else value)
    _place_image(found, args)
    for condition in args.condition:
        found.setdefault("conditions", []).append(condition)
    for field, value in args.set:
        try:
            put(found, field, value)
        except ValueError as error:
            raise CommandLineError(f"--set: {error}") from None
    return found


def _set(content: dict[str, Any], flag: Flag, value: Any) -> None:
    if flag.many == "each":
        _set_each(content, flag, value)
    elif flag.many == "named":
        for name, entry in value:
            whole = f"{flag.field}.{name}"
            _put(content, f"{whole}.path" if flag.is_path else whole, entry)
    elif flag.many == "list" and len(flag.fields) > 1:
        for field, values in zip(flag.fields, zip(*value)):
            _put(content, field, list(values))
    elif len(flag.fields) > 1:
        for field, part in zip(flag.fields, value):
            _put(content, field, part)
    elif flag.many == "one or more" and len(value) == 1:
        _put(content, flag.field, value[0])
    else:
        _put(content, flag.field, value)


def _put(content: dict[str, Any], field: str, value: Any, number: int = 0) -> None:
    if field.startswith(CONDITIONS):
        _, kind, name = field.split(".", 2)
        put(_condition(content, kind, number), name, value)
    else:
        put(content, field, value)


def _condition(content: dict[str, Any], kind: str, number: int) -> dict[str, Any]:
    """Return the condition of a type with this number; add it if there is none."""
    conditions = content.setdefault("conditions", [])
    same = [each for each in conditions if each.get("type") == kind]
    if number < len(same):
        return same[number]
    conditions.append({"type": kind})
    return conditions[-1]


def _set_each(content: dict[str, Any], flag: Flag, values: Sequence[Any]) -> None:
    """Give each condition, or LoRA, its value; a single value goes to all."""
    if flag.field.startswith(CONDITIONS):
        _, kind, name = flag.field.split(".", 2)
        count = max(len(values), sum(each.get("type") == kind for each in content.get("conditions", ())))
        places: list[dict[str, Any]] = [_condition(content, kind, number) for number in range(count)]
    else:
        section, name = flag.field.split(".")
        places = content.get(section) or []
    if len(values) not in (1, len(places)):
        raise CommandLineError(f"{flag.name} is given {len(values)} times for {len(places)}; give one for each")
    for index, place in enumerate(places):
        put(place, name, values[index if len(values) > 1 else 0])


def _place_image(content: dict[str, Any], args: argparse.Namespace) -> None:
    """Give --image to what inpaints; then the call starts from it only if a strength is given."""
    image = content.get("call", {}).get("image")
    for kind in ("InpaintRegion", "FillMask"):
        for condition in content.get("conditions", ()):
            if condition.get("type") == kind and "image" not in condition and image is not None:
                condition["image"] = image
                if args.strength is None and args.image is not None:
                    content["call"].pop("image", None)


def _based(value: Any, base: Path) -> Any:
    """Return paths relative to the job's folder, where the file is seen from here."""
    if isinstance(value, str):
        is_here = base.resolve() == Path.cwd().resolve() or os.path.isabs(value)
        return value if is_here or not os.path.exists(value) else os.path.relpath(value, base)
    if isinstance(value, dict):
        return {name: _based(each, base) if name == "path" else each for name, each in value.items()}
    if isinstance(value, tuple):
        # A name and a path.
        return (value[0], _based(value[1], base))
    return [_based(each, base) for each in value] if isinstance(value, list) else value


def flag_of(field: str, content: dict[str, Any]) -> str | None:
    """Return the flag that sets a field of a job.

    Args:
        field (`str`): The field, such as `"conditions.0.image"`.
        content (`dict[str, Any]`): The job's entries, which say what type the condition has.

    Returns:
        `str`, *optional*: for example `"--control"`; `None` if no flag of the table sets it.
    """
    parts = field.split(".")
    if parts[0] == "conditions" and len(parts) > 1 and parts[1].isdecimal():
        conditions = content.get("conditions", [])
        kind = conditions[int(parts[1])].get("type", "") if int(parts[1]) < len(conditions) else ""
        parts[1] = str(kind)
    return next((flag.name for flag in all_flags() for target in flag.fields if _meet(parts, target.split("."))), None)


def _meet(parts: Sequence[str], target: Sequence[str]) -> bool:
    """Whether a field lies inside of a flag's, or the other way round, as a module does whose path a flag sets."""
    shared = min(len(parts), len(target))
    whole = 3 if target[0] == "conditions" else min(2, len(target))
    return shared >= whole and list(parts[:shared]) == list(target[:shared])
