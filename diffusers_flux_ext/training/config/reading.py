"""Reading a configuration from YAML or JSON, with entries that flags replace."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ...validation import entries, line
from .sections import TrainingConfig


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
        lines = [line(*entry) for entry in entries(error, TrainingConfig, content)]
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


def print_config(config: TrainingConfig) -> str:
    """Return a configuration, with all defaults, as YAML.

    Args:
        config (`TrainingConfig`): The configuration.

    Returns:
        `str`: which [`read_config`] reads back to an equal configuration.
    """
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True)
