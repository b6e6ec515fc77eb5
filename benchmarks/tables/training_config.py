"""Every entry of a training configuration, and DiffSynth-Studio's arguments, from the classes that read them.

python -m benchmarks.tables.training_config
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from benchmarks.methods import write_between_markers
from diffusers_flux_ext import FluxCondition
from diffusers_flux_ext.methods import METHODS
from diffusers_flux_ext.methods.method import resolve
from diffusers_flux_ext.training.config.reference import table
from diffusers_flux_ext.training.config.sections import Named, TrainingConfig
from diffusers_flux_ext.training.trained import trainable_modules


DOCS = Path(__file__).parents[2] / "docs"
ENTRIES = ("<!-- entries: begin -->\n", "<!-- entries: end -->")
ARGUMENTS = ("<!-- arguments: begin -->\n", "<!-- arguments: end -->")
_ARGUMENT = re.compile(r"^ {4}(\w+) \((.+?)\):(.*(?:\n {8}.*)*)", re.MULTILINE)


def entries_text() -> str:
    """Return a part for each section of the configuration, with a table of its entries."""
    places: dict[type, list[str]] = {}
    for place, kind in _sections(TrainingConfig, ""):
        places.setdefault(kind, []).append(place)
    return "\n".join([*(_part(kind, names) for kind, names in places.items()), _conditions(), _kinds()])


def _sections(kind: type, place: str) -> Iterator[tuple[str, type]]:
    yield place, kind
    for name, annotation in _annotations(kind).items():
        for each in _classes(annotation):
            if each is not Named and each is not kind:
                listed = str(annotation).startswith("list") or "Sequence" in str(annotation)
                yield from _sections(each, f"{place}{name}.{'0.' if listed else ''}")


def _annotations(kind: Any) -> dict[str, Any]:
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    known = inspect.get_annotations(kind, eval_str=True)
    return {each.name: known[each.name] for each in dataclasses.fields(kind)}


def _classes(annotation: Any) -> list[type]:
    is_section = isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    )
    found = [annotation] if is_section else []
    return found + [kind for each in get_args(annotation) for kind in _classes(each)]


def _part(kind: type, places: list[str]) -> str:
    doc = inspect.cleandoc(kind.__doc__ or "")
    heading = " and ".join(f"`{place.rstrip('.')}`" for place in places if place) or "The whole"
    about = doc.split("\n\nArgs:")[0]
    described = {name: " ".join(text.split()) for name, _, text in _ARGUMENT.findall(doc)}
    rows = [
        f"| `{name}` | {_default(kind, name)} | {_escaped(_linked(described[name]))} |" for name in _annotations(kind)
    ]
    return "\n".join([f"## {heading}", "", _linked(about), "", "| entry | default | |", "|---|---|---|", *rows, ""])


def _default(kind: Any, name: str) -> str:
    if issubclass(kind, BaseModel):
        field = kind.model_fields[name]
        required, value = field.is_required(), field.default
    else:
        made = next(each for each in dataclasses.fields(kind) if each.name == name)
        factory: Any = made.default_factory
        required = made.default is dataclasses.MISSING and factory is dataclasses.MISSING
        value = made.default if factory is dataclasses.MISSING else factory()
    if required:
        return "required"
    if isinstance(value, Named):
        return f"`{{{', '.join(f'{key}: {each}' for key, each in value.model_dump().items())}}}`"
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return "see there"
    return _escaped(f"`{_plain(value)}`")


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, str):
        return value or '""'
    return "{}" if value == {} else str(value)


def _linked(text: str) -> str:
    """Return text without the references that only the documentation of functions resolves."""
    return re.sub(r"\[`([\w.]+)`\](?!\()", r"`\1`", text)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _conditions() -> str:
    lines = ["## Conditions", "", "Fields are `inputs` (from columns), `options` or `modules`.", ""]
    rows = ["| `type` | fields |", "|---|---|"]
    for method in METHODS.values():
        for name in method.exports.get("condition", ()):
            made = resolve(method.package, f".condition:{name}")
            if made.after_step is not FluxCondition.after_step:
                # It changes latents after a step, so there is nothing to train.
                continue
            names = [each.name for each in dataclasses.fields(made)]
            rows.append(f"| [`{name}`]({method.page}.md) | {', '.join(f'`{each}`' for each in names)} |")
    return "\n".join([*lines, *rows, ""])


def _kinds() -> str:
    lines = ["## Kinds of modules", "", "| `kind` | class | method |", "|---|---|---|"]
    for name, (method, record) in trainable_modules().items():
        lines.append(f"| `{name}` | `{record.module.rpartition(':')[2]}` | [{method.name}]({method.page}.md) |")
    return "\n".join([*lines, ""])


PAGES = {
    DOCS / "training_config.md": (entries_text, ENTRIES),
    DOCS / "training_from_diffsynth.md": (table, ARGUMENTS),
}


def main() -> None:
    """Write both pages' generated parts."""
    for page, (make, markers) in PAGES.items():
        write_between_markers(page, make(), markers)
        sys.stdout.write(f"{page.name} is current\n")


if __name__ == "__main__":
    main()
