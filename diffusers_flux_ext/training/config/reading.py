"""Reading a configuration from YAML or JSON, with entries that flags replace."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .sections import Named, TrainingConfig


class ConfigurationError(ValueError):
    """A configuration is wrong; each line of the message names an entry."""


def read_config(source: str | os.PathLike[str] | Mapping[str, Any], changes: Sequence[str] = ()) -> TrainingConfig:
    """Read and check a configuration.

    Args:
        source (`str`, `os.PathLike` or `Mapping`): A YAML or JSON file, or its content.
        changes (`Sequence[str]`): Entries to replace, such as `"optimizer.lr=1e-4"`; values are YAML.

    Returns:
        `TrainingConfig`

    Raises:
        ConfigurationError: if the file is not YAML, or entries are unknown, missing or wrong. All of them are named.
        OSError: if the file cannot be read.
    """
    name = "the configuration" if isinstance(source, Mapping) else f"`{os.fspath(source)}`"
    content = dict(source) if isinstance(source, Mapping) else _parse(Path(source), name)
    for change in changes:
        content = _changed(content, change)
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        lines = list(dict.fromkeys(_line(entry, content) for entry in error.errors()))
        listed = "\n".join(f"- {line}" for line in lines[:10])
        more = f"\n- and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise ConfigurationError(f"{name[0].upper()}{name[1:]} is wrong:\n{listed}{more}") from error


def _parse(path: Path, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{name} is not YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{name} holds {type(content).__name__}; expected entries such as `model:`.")
    return content


def _changed(content: Mapping[str, Any], change: str) -> dict[str, Any]:
    place, separator, text = change.partition("=")
    if not separator or not place.strip():
        raise ConfigurationError(
            f"Got the change {change!r}; expected an entry and a value, such as `optimizer.lr=1e-4`."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"The value of the change {change!r} is not YAML.") from error
    return _put(content, place.strip().split("."), _number(value), change)


def _put(content: Any, names: Sequence[str], value: Any, change: str) -> Any:
    if not names:
        return value
    name, rest = names[0], names[1:]
    if isinstance(content, list):
        if not name.isdecimal() or int(name) >= len(content):
            raise ConfigurationError(
                f"The change {change!r} names the entry {name!r} of a list of {len(content)}; expected its number, "
                f"from 0."
            )
        return [*content[: int(name)], _put(content[int(name)], rest, value, change), *content[int(name) + 1 :]]
    before = dict(content) if isinstance(content, Mapping) else {}
    return {**before, name: _put(before.get(name, {}), rest, value, change)}


def _number(value: Any) -> Any:
    # YAML takes 1e-4 for a text, since there is no dot in it.
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _line(entry: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    parts = [str(part) for part in entry["loc"]]
    place = ".".join(parts) or "the whole"
    if entry["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(parts[-1], _known(TrainingConfig, parts[:-1]), 1)
        return f"`{place}` is not known" + (f"; did you mean `{'.'.join([*parts[:-1], near[0]])}`?" if near else ".")
    if entry["type"] in ("missing", "missing_argument"):
        return f"`{place}` is missing."
    message = entry["msg"].removeprefix("Value error, ").rstrip(".")
    given = entry.get("input")
    shown = "" if isinstance(given, (Mapping, BaseModel)) or "got " in message else f", got {_short(given)}"
    return f"`{place}`: {message[0].lower()}{message[1:]}{shown}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known(model: Any, parts: Sequence[str]) -> list[str]:
    """Return the entries that a section, or a list of sections, has."""
    if is_dataclass(model):
        return [each.name for each in fields(model)]
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or issubclass(model, Named):
        return []
    if not parts:
        return list(model.model_fields)
    field = model.model_fields.get(parts[0])
    rest = [part for part in parts[1:] if not part.isdecimal()]
    return [] if field is None else _among(field.annotation, rest)


def _among(annotation: Any, parts: Sequence[str]) -> list[str]:
    found = _known(annotation, parts)
    for each in get_args(annotation):
        found += _among(each, parts[1:] if get_args(annotation) and annotation in () else parts)
    return found


def print_config(config: TrainingConfig) -> str:
    """Return a configuration, with all defaults, as YAML.

    Args:
        config (`TrainingConfig`): The configuration.

    Returns:
        `str`: which [`read_config`] reads back to an equal configuration.
    """
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True)
