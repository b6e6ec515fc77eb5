"""Mutations of JSON: values of other types, huge numbers, deep nesting, keys changed, dropped and doubled."""

from __future__ import annotations

import json
from random import Random
from typing import Any


# Written as they stand, because Python would not write them.
RAW_VALUES = (
    "1e400", "-1e400", "NaN", "Infinity", "1" + "0" * 5000, "-" + "9" * 400, "1.5", "1e9", "1000000000", "-1", "0",
    "true", "null", '""', '"x"', '"../../x"', '"a\\u0000b"', '"\\ud800"', "[]", "{}", "[[]]", '{"a":{"b":[1]}}',
    "[" * 3000 + "]" * 3000, '{"a":' * 900 + "1" + "}" * 900, '"' + "k" * 100_000 + '"',
)  # fmt: skip
_HOLE = "\x00hole\x00"


def edit_json(text: bytes, rng: Random) -> bytes:
    """Change one place of a JSON document."""
    document = json.loads(text)
    place = rng.choice(_places(document))
    edit = rng.choice((_other_value, _other_value, _scaled, _dropped, _renamed, _doubled))
    return edit(document, place, rng)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children: Any = ()
    if isinstance(document, dict):
        children = document.items()
    elif isinstance(document, list):
        children = enumerate(document)
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


def _replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = _replaced(copy[place[0]], place[1:], value)
    return copy


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def _other_value(document: Any, place: tuple[Any, ...], rng: Random) -> bytes:
    hole = json.dumps(_HOLE)
    return json.dumps(_replaced(document, place, _HOLE)).replace(hole, rng.choice(RAW_VALUES)).encode()


def _parent(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def _scaled(document: Any, place: tuple[Any, ...], rng: Random) -> bytes:
    """Return a number that stays one."""
    numbers = [path for path in _places(document) if isinstance(_at(document, path), int | float)]
    if not numbers:
        return _other_value(document, place, rng)
    chosen = rng.choice(numbers)
    value = _at(document, chosen)
    others = (value + 1, value - 1, -value, value * 2, value * 10**9, 2**31, 2**63, 2**64, value * 0.5, 0)
    return _dump(_replaced(document, chosen, rng.choice(others)))


def _at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


def _dropped(document: Any, place: tuple[Any, ...], rng: Random) -> bytes:
    if not place:
        return b""
    parent = _parent(document, place)
    if isinstance(parent, dict):
        rest: Any = {key: value for key, value in parent.items() if key != place[-1]}
    else:
        rest = [value for index, value in enumerate(parent) if index != place[-1]]
    return _dump(_replaced(document, place[:-1], rest))


def _renamed(document: Any, place: tuple[Any, ...], rng: Random) -> bytes:
    if not place or not isinstance(parent := _parent(document, place), dict):
        return _other_value(document, place, rng)
    key = edit_key(place[-1], rng)
    renamed = {key if name == place[-1] else name: value for name, value in parent.items()}
    return _dump(_replaced(document, place[:-1], renamed))


def _doubled(document: Any, place: tuple[Any, ...], rng: Random) -> bytes:
    """Return one key twice, with the same or another value."""
    if not place or not isinstance(parent := _parent(document, place), dict):
        return _dropped(document, place, rng)
    value = parent[place[-1]] if rng.random() < 0.5 else rng.choice((None, 3, "x", []))
    marked = _dump(_replaced(document, place[:-1], {**parent, _HOLE: value}))
    return marked.replace(json.dumps(_HOLE).encode(), json.dumps(place[-1]).encode())


def edit_key(key: str, rng: Random) -> str:
    """Return another spelling of a key of a state dict: another index, a part less or more, other letters."""
    parts = key.split(".")
    digits = [index for index, part in enumerate(parts) if part.isdigit()]
    odd = ("99999999", "9" * 25, "9" * 5000, "-1", "007", "\u0663", "1e3", "", "7", "1000", "²")
    if digits and rng.random() < 0.6:
        parts[rng.choice(digits)] = rng.choice(odd)
        return ".".join(parts)
    return rng.choice(
        (
            ".".join(parts[:-1]), ".".join([*parts, "weight"]), "module." + key, key.upper(), key + " ", "", "x",
            key + "\u202e\x00\n", key * 3000, "__metadata__", ".".join(rng.sample(parts, len(parts))),
        )
    )  # fmt: skip
