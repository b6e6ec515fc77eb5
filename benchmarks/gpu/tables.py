"""Write the tables of `docs/gpu.md` from files of results.

Run from the repository's root; without files, from those in `benchmarks/gpu/results`:

    python -m benchmarks.gpu.tables results.json
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import in_words
from benchmarks.gpu.results import key_of, read_results
from benchmarks.gpu.rows import Section, shown
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.sizes import RELEASED
from benchmarks.methods import write_between_markers


PAGE = Path("docs/gpu.md")
RESULTS = Path(__file__).parent / "results"
MARKERS = ("<!-- figures: begin -->\n", "<!-- figures: end -->")
NONE = "Nothing has been measured yet.\n"


def page_part(contents: Sequence[Mapping[str, Any]]) -> str:
    """Return all tables of all files in Markdown.

    Args:
        contents (`Sequence[Mapping[str, Any]]`): Files of results; without any, the tables have empty cells.

    Returns:
        `str`

    Raises:
        ValueError: if a file has results of the toy size, which mean nothing.
    """
    toys = [content["machine"]["device"] for content in contents if content["size"] != RELEASED.name]
    if toys:
        raise ValueError(f"Results of the toy size, measured on {toys}, do not belong into a page.")
    if not contents:
        return f"{NONE}\n{_tables({})}"
    return "\n".join(f"{_source(content)}\n\n{_tables(_by_key(content))}" for content in contents)


def _by_key(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key_of(row["section"], row["name"], row["settings"]): row for row in content["rows"]}


def _source(content: Mapping[str, Any]) -> str:
    dates = sorted({row["date"] for row in content["rows"]})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "nothing yet"
    return f"Measured on {in_words(content['machine'])}; {when}."


def _tables(found: Mapping[str, Any]) -> str:
    return "\n".join(table(section, found) for section in SECTIONS)


def table(section: Section, found: Mapping[str, Any]) -> str:
    """Return the table of a section, with empty cells where there is no result, and why.

    Args:
        section (`Section`): The section.
        found (`Mapping[str, Any]`): Rows of results by their keys.

    Returns:
        `str`
    """
    heads = ["", *section.heads.values(), *section.columns.values()]
    lines = [f"### {section.letter}. {section.title}\n", f"{section.about}\n"]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    rows = [(row, found.get(key_of(section.letter, row.name, row.settings), {})) for row in section.rows(RELEASED)]
    base = _base(section, [result for _, result in rows])
    notes: dict[str, None] = {}
    for row, result in rows:
        values = {**result.get("values", {}), "relative": _relative(section, base, result)}
        settings = [shown(row.settings.get(name)) for name in section.heads]
        cells = [row.name, *settings, *(shown(values.get(name)) for name in section.columns)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        said = [result["why"]] if result.get("why") else result.get("notes", [])
        notes |= dict.fromkeys(f"- {', '.join(filter(None, [row.name, *settings]))}: {each}" for each in said)
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _base(section: Section, results: Sequence[Mapping[str, Any]]) -> float | None:
    if section.base is None:
        return None
    name, value = section.base
    found = [each["values"].get(value) for each in results if each.get("values") and each["name"] == name]
    return found[0] if found else None


def _relative(section: Section, base: float | None, result: Mapping[str, Any]) -> float | None:
    value = result.get("values", {}).get(section.base[1]) if section.base else None
    return value / base if base and value else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep the given files, and write the page from all that are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="files of results, which are copied to the others")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the files that are kept")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(arguments)
    page_part([read_results(file) for file in args.files])
    args.results.mkdir(exist_ok=True)
    for file in args.files:
        if file.resolve().parent != args.results.resolve():
            shutil.copyfile(file, args.results / file.name)
    kept = [read_results(path) for path in sorted(args.results.glob("*.json"))]
    write_between_markers(args.page, page_part(kept), MARKERS)
    sys.stdout.write(f"{args.page}: {len(kept)} files of results\n")


if __name__ == "__main__":
    main()
