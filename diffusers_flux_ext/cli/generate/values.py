"""Values of flags as entries of a job."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from ..parsing import Entity, parse_entity, parse_number, parse_scale


_FIELD = r"[a-z_][a-z0-9_.]*"
_IMAGE_OF_ENTITY = re.compile(r"(?P<text>.*\S)\s*@(?P<path>[^@]+\.(?:png|jpe?g|webp|bmp|tiff?))", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+e[+-]?\d+", re.IGNORECASE)
_OPEN, _CLOSE = "[{(", "]})"


def region(value: str) -> list[float] | str:
    """Read a region: a box `left,top,right,bottom`, or else the path of a mask.

    Args:
        value (`str`): The flag's value.

    Returns:
        `list[float]` or `str`
    """
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        return value
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(
            f"{value!r} is neither a box LEFT,TOP,RIGHT,BOTTOM nor the path of a mask, white where it acts"
        )
    return list(parse_entity(f"region@{value}").box)


def entity(value: str) -> tuple[str, list[float] | str]:
    """Read `text@left,top,right,bottom` or `text@mask.png`.

    Args:
        value (`str`): The flag's value; the text may hold further `@`.

    Returns:
        `tuple[str, list or str]`: text and region.
    """
    found = _IMAGE_OF_ENTITY.fullmatch(value)
    if found is not None:
        return found["text"], found["path"]
    read: Entity = parse_entity(value)
    return read.text, list(read.box)


def lora(value: str) -> dict[str, Any]:
    """Read `path` or `path@weight`.

    Args:
        value (`str`): The flag's value; `name@2.safetensors` has no weight.

    Returns:
        `dict[str, Any]`: an entry of the job's `loras`.
    """
    path, separator, weight = value.rpartition("@")
    try:
        return {"path": path, "weight": parse_number(weight)} if separator and path else {"path": value}
    except argparse.ArgumentTypeError:
        return {"path": value}


def cache(value: str) -> dict[str, Any] | None:
    """Read `name` or `name=threshold`.

    Args:
        value (`str`): The flag's value; `none` for no cache.

    Returns:
        `dict[str, Any]`, *optional*: the job's `memory.cache`.
    """
    name, separator, threshold = value.partition("=")
    if name == "none" and not separator:
        return None
    return {"name": name, **({"threshold": parse_scale(threshold)} if separator else {})}


def named(read: Callable[[str], Any], value_name: str) -> Callable[[str], tuple[str, Any]]:
    """Return a parser of `name=value`.

    Args:
        read (`Callable`): Reads the value.
        value_name (`str`): What it is, for messages.
    """

    def parse(value: str) -> tuple[str, Any]:
        name, separator, text = value.partition("=")
        if not separator or not name.strip() or not text.strip():
            raise argparse.ArgumentTypeError(f"{value!r} is not NAME={value_name}")
        return name.strip(), read(text.strip())

    return parse


def condition(value: str) -> dict[str, Any]:
    """Read `Type:field=value,field=value`, with values in YAML.

    Args:
        value (`str`): The flag's value, such as `"ReduxImages:images=[a.png, b.png],image_embedder.path=redux"`.

    Returns:
        `dict[str, Any]`: an entry of the job's `conditions`.
    """
    kind, _, fields = value.partition(":")
    if not kind.strip().isidentifier():
        raise argparse.ArgumentTypeError(
            f"{value!r} is not TYPE:FIELD=VALUE,..., for example 'ReferenceImages:images=photo.png,scale=0.5'"
        )
    found: dict[str, Any] = {"type": kind.strip()}
    for part in _split(fields):
        name, entry = setting(part)
        put(found, name, entry)
    return found


def setting(value: str) -> tuple[str, Any]:
    """Read `field=value`, with the value in YAML.

    Args:
        value (`str`): The flag's value, such as `"call.sigmas=[1, 0.5]"`.

    Returns:
        `tuple[str, Any]`: the field and its value.
    """
    import yaml

    name, separator, text = value.partition("=")
    if not separator or not re.fullmatch(r"\w+(?:\.\w+)*", name.strip()):
        raise argparse.ArgumentTypeError(f"{value!r} is not FIELD=VALUE, for example scale=0.5")
    if text.startswith("data:"):
        return name.strip(), text
    if _NUMBER.fullmatch(text.strip()):
        # YAML takes 1e-4 for a text, since there is no point in it.
        return name.strip(), float(text)
    try:
        return name.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"the value of {name.strip()!r} is not YAML: {' '.join(str(error).split())}"
        ) from None


def _split(fields: str) -> list[str]:
    """Split at commas that begin a field, outside of brackets and quotes."""
    parts, start, depth, quote = [], 0, 0, ""
    for index, character in enumerate(fields):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and (index == 0 or fields[index - 1] in "=,[ :{"):
            quote = character
        elif character in _OPEN + _CLOSE:
            depth += 1 if character in _OPEN else -1
        elif character == "," and depth == 0 and re.match(rf"\s*{_FIELD}=", fields[index + 1 :]):
            parts.append(fields[start:index])
            start = index + 1
    return [part for part in (*parts, fields[start:]) if part.strip()]


def put(content: dict[str, Any], field: str, value: Any) -> None:
    """Set an entry deep inside.

    Args:
        content (`dict[str, Any]`): Where; mappings on the way are made.
        field (`str`): Names joined by points; entries of lists by their numbers.
        value (`Any`): The value.

    Raises:
        ValueError: if something on the way is neither a mapping nor a list that has such an entry.
    """
    names = field.split(".")
    place: Any = content
    for name, following in zip(names, [*names[1:], None]):
        if not isinstance(place, (dict, list)):
            raise ValueError(f"`{field}` cannot be set: there is {place!r} in place of entries such as {name!r}.")
        if isinstance(place, list) and not (name.isdecimal() and int(name) < len(place)):
            raise ValueError(
                f"`{field}` cannot be set: got the entry {name!r} of a list of {len(place)}; expected its "
                f"number, from 0."
            )
        key: Any = int(name) if isinstance(place, list) else name
        if following is None:
            place[key] = value
        else:
            place[key] = _entries(place, key, following.isdecimal())
            place = place[key]


def _entries(place: Any, key: Any, numbered: bool) -> Any:
    """Return what stands at a key, or new entries; a model or a module may be written as its path alone."""
    found = place[key] if isinstance(place, list) else place.get(key)
    if found is None:
        return [] if numbered else {}
    return {"path": found} if isinstance(found, str) else found
