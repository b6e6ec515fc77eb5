"""The tables of docs/training_proofs.md, from the files of the results.

python -m benchmarks.training.table --write docs/training_proofs.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods import write_between_markers
from benchmarks.training.runner import RESULTS


MARKERS = ("<!-- proofs: begin -->\n", "<!-- proofs: end -->")
ORDER = (
    "controlnet",
    "style",
    "size",
    "attributes",
    "eligen",
    "new_shape",
    "together",
    "edits",
    "fill",
    "ip_adapter",
    "redux",
    "differences",
    "distill",
    "precision",
)


def number(value: float, unit: str) -> str:
    """Return a number with its unit."""
    if unit == "%":
        return f"{100 * value:.0f} %"
    return f"{value:.1f} {unit}" if unit else f"{value:.3f}"


def line(title: str, training: str, row: dict[str, Any]) -> str:
    """Return one line of the table."""
    bounds = [f"{'≥' if name == 'min' else '≤'} {number(value, row['unit'])}" for name, value in row["bounds"].items()]
    wanted = f"{', '.join(bounds)}: {'yes' if row['reached'] else '**no**'}" if bounds else ""
    spread = f"{number(row['low'], row['unit'])} to {number(row['high'], row['unit'])}"
    return (
        f"| {title} | {training} | {row['what']} | {number(row['value'], row['unit'])} | {spread} | {row['items']} "
        f"| {wanted} |\n"
    )


def lengths_of(trainings: Sequence[Mapping[str, Any]]) -> str:
    """Return the lengths of trainings, equal ones once, with their number."""
    counts = Counter(f"{each['updates']} x {each['batch_size']}" for each in trainings)
    return ", ".join(length if count == 1 else f"{count} times {length}" for length, count in counts.items())


def table() -> str:
    """Return the whole table."""
    lines = [
        "| trained | updates x batch | measured | value | 95 % | items | bound |\n",
        "|---|---|---|---|---|---|---|\n",
    ]
    for name in ORDER:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        lengths = lengths_of(result["trainings"])
        for place, row in enumerate(result["rows"]):
            lines.append(line(result["title"] if place == 0 else "", lengths if place == 0 else "", row))
    return "".join(lines)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description="Write the tables of the proofs.")
    parser.add_argument("--write", type=Path, help="write the table into this page, between its markers")
    arguments = parser.parse_args()
    text = table()
    sys.stdout.write(text)
    if arguments.write is not None:
        write_between_markers(arguments.write, text, MARKERS)


if __name__ == "__main__":
    main()
