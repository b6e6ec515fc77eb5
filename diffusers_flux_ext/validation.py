"""Words for what pydantic finds wrong in a configuration or a job: one line per entry, with the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, RootModel, ValidationError


LONGEST = 60
# Errors that say only that a value is of another kind than one branch of a union takes.
_OTHER_KIND = ("_type", "literal_error", "none_required", "is_instance_of")


def entries(error: ValidationError, model: Any, content: Any) -> list[tuple[str, str]]:
    """Say what is wrong with each entry of a content.

    Args:
        error (`pydantic.ValidationError`): What pydantic raised.
        model (`type`): The model that the content was read as.
        content (`Any`): The content.

    Returns:
        `list[tuple[str, str]]`: places such as `"conditions.0.scale"`, and what is wrong there, without a full stop.
    """
    unions: dict[tuple[str | int, ...], list[tuple[tuple[str | int, ...], Any]]] = {}
    for each in error.errors():
        place, union = _place(each, content)
        if each["type"] == "too_short" and each["input"] and each["ctx"]["actual_length"] == 0:
            # A list is too short for pydantic if none of its entries is right.
            continue
        unions.setdefault(place if union is None else union, []).append((place, each))
    found = [entry for union, errors in unions.items() for entry in _of_union(union, errors, model, content)]
    return list(dict.fromkeys((".".join(map(str, place)) or "the whole", words) for place, words in found))


def line(place: str, words: str) -> str:
    """Return one line about an entry, such as "`call.width`: input should be greater than 0, got -1."."""
    return f"`{place}`{' ' if words.startswith('is ') else ': '}{words}{'' if words.endswith('?') else '.'}"


def nearest(name: object, known: Collection[str]) -> str:
    """Return the end of a sentence that names the nearest known name; empty if none is near."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _place(entry: Any, content: Any) -> tuple[tuple[str | int, ...], tuple[str | int, ...] | None]:
    """Return the place of an error in the content, and the place of the first union that it is inside of.

    pydantic adds the names of branches of unions to the place; they are not entries of the content.
    """
    place: list[str | int] = []
    union, at = None, content
    for number, part in enumerate(entry["loc"]):
        last = number == len(entry["loc"]) - 1
        names_entry = isinstance(at, Mapping) and (part in at or (last and entry["type"] in _ABSENT))
        if names_entry or (isinstance(at, (list, tuple)) and isinstance(part, int) and part < len(at)):
            place.append(part)
            at = at.get(part) if isinstance(at, Mapping) else at[part]
        elif union is None and not (isinstance(at, Mapping) and part == at.get("type")):
            union = tuple(place)
    return tuple(place), union


_ABSENT = ("missing", "missing_argument", "extra_forbidden", "unexpected_keyword_argument")


def _of_union(union: Any, errors: Sequence[tuple[Any, Any]], model: Any, content: Any) -> Iterator[tuple[Any, str]]:
    """Say what is wrong in the branches that the value was meant for: those of its kind, as deep as they got."""
    inside = [(place, each) for place, each in errors if not str(each["type"]).endswith(_OTHER_KIND)]
    for place, each in inside:
        yield place, _words(place, each, model, content)
    meant = {place for place, _ in inside}
    kinds: dict[Any, list[Any]] = {}
    for place, each in errors:
        deeper = any(_begins(other, place) for other, _ in errors if other != place)
        if str(each["type"]).endswith(_OTHER_KIND) and not deeper and not any(_begins(place, one) for one in meant):
            kinds.setdefault(place, []).append(each)
    for place, found in kinds.items():
        if len(found) == 1:
            yield place, _words(place, found[0], model, content)
        else:
            expected = " or ".join(dict.fromkeys(map(_expected, found)))
            yield place, f"expected {expected}, got {_short(found[0].get('input'))}"


def _begins(place: Sequence[Any], start: Sequence[Any]) -> bool:
    return tuple(place[: len(start)]) == tuple(start)


_PLAIN_WORDS = {"string": "text", "tuple": "list", "dictionary": "mapping"}


def _expected(entry: Any) -> str:
    words = (
        str(entry["msg"]).removeprefix("Input should be ").removeprefix("a valid ").partition(" or instance of ")[0]
    )
    return _PLAIN_WORDS.get(words, words)


def _words(place: Sequence[str | int], entry: Any, model: Any, content: Any) -> str:
    if entry["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known(model, content, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, 1)
        return "is not known" + (f"; did you mean `{'.'.join(map(str, [*place[:-1], near[0]]))}`?" if near else "")
    if entry["type"] in ("missing", "missing_argument"):
        # The entries of a list have numbers.
        few = isinstance(entry["loc"][-1], int)
        return f"has too few entries, got {_short(_at_place(content, place))}" if few else "is missing"
    if entry["type"] == "union_tag_not_found":
        return "has no `type`, which says what it is"
    if entry["type"] == "union_tag_invalid":
        known = [name.strip("' ") for name in entry["ctx"]["expected_tags"].split(",")]
        return f"is of the type {entry['ctx']['tag']!r}, which is not known{nearest(entry['ctx']['tag'], known)}"
    message = str(entry["msg"]).removeprefix("Value error, ").rstrip(".")
    given = entry.get("input")
    shown = "" if isinstance(given, (Mapping, BaseModel)) or "got " in message else f", got {_short(given)}"
    return f"{message[0].lower()}{message[1:]}{shown}"


def _at_place(content: Any, place: Sequence[str | int]) -> Any:
    for part in place:
        content = _at(content, part)
    return content


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _known(annotation: Any, content: Any, place: Sequence[str | int]) -> list[str]:
    """Return the names that a section has at a place of the content."""
    found: list[str] = []
    for option in _options(annotation):
        names = _fields(option, content)
        if names and not place:
            found += names
        elif names and place[0] in names:
            found += _known(names[str(place[0])], _at(content, place[0]), place[1:])
        elif get_origin(option) is not None and place:
            items = [each for each in get_args(option) if each is not Ellipsis]
            found += _known(items[-1], _at(content, place[0]), place[1:]) if items else []
    return found


def _options(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _options(each)
    elif isinstance(annotation, type) and issubclass(annotation, RootModel):
        yield from _options(annotation.model_fields["root"].annotation)
    else:
        yield annotation


def _fields(option: Any, content: Any) -> dict[str, Any]:
    """Return the entries of a model with their annotations; nothing for what is none, or another kind of condition."""
    if not isinstance(option, type):
        return {}
    if is_dataclass(option):
        hints = get_type_hints(option)
        return {each.name: hints[each.name] for each in fields(option)}
    if not issubclass(option, BaseModel) or option.model_config.get("extra") == "allow":
        return {}
    kind = option.model_fields.get("type")
    if kind is not None and _at(content, "type") not in get_args(kind.annotation):
        return {}
    return {name: field.annotation for name, field in option.model_fields.items()}


def _at(content: Any, part: str | int) -> Any:
    try:
        return content[part]
    except (KeyError, IndexError, TypeError):
        return None
