"""Every pair of conditions in both orders, the promised combinations, and a LoRA beside each: the table of the docs.

Run from the repository's root:

    python -m benchmarks.composition_table --write docs/composition_table.md
"""

import argparse
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path

import torch
from diffusers.utils import logging

from benchmarks.support.conditions import CASES, LORA, METHODS, SYNTHETIC, draw, draw_anew, pipeline_for, promised


PAGE = """# What runs with what: the table

Made by `python -m benchmarks.composition_table --write docs/composition_table.md` with the tiny model in float32: a
guided call of two steps, in every order. Numbers are the largest difference between pixels in [0, 1]; the tests demand
1e-5. Letters are refusals before the first step, whose messages stand below. How it works:
[composition.md](composition.md).

## Pairs of methods

A condition with itself is a second one of its class: a number says that both run.

{methods}
{method_notes}
The names stand for the classes {classes}.

## Pairs with each kind of contribution

What a condition of your own may add: text tokens, reference tokens, residuals of a ControlNet, channels, or another
prompt.

{synthetic}
{synthetic_notes}
## Promised combinations

Each part counts: without it the image changes, as the tests check.

| together | difference between all orders |
|---|---|
{promised}

## A loaded LoRA beside each

`load_lora_weights` with a LoRA of all layers, against the same LoRA after `fuse_lora`; and the change of the image
by the LoRA, which says that it arrives.

| condition | loaded or fused | change by the LoRA |
|---|---|---|
{lora}
"""


def number(value: float) -> str:
    """Return a difference with one digit; exactly none is 0."""
    return "0" if value == 0 else f"{value:.0e}"


class Notes:
    """Refusals, each with a letter."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}

    def letter(self, message: str) -> str:
        """Return the letter of a message."""
        return self.letters.setdefault(message, chr(ord("a") + len(self.letters)))

    def text(self) -> str:
        """Return all messages."""
        return "".join(f"- **{letter}**: {message}\n" for message, letter in self.letters.items())


def orders(names: Sequence[str], notes: Notes) -> str:
    """Return the largest difference between all orders of the named conditions, or the letter of the refusal."""
    images, messages = [], []
    weights = [name for name in names if name == LORA]
    for order in dict.fromkeys(permutations(name for name in names if name != LORA)):
        try:
            images.append(draw(*weights, *order, output_type="pt"))
        except ValueError as error:
            messages.append(str(error))
    if messages and images:
        raise RuntimeError(f"{names} are refused in some orders only: {messages[0]}")
    if messages:
        # One message for both orders, whichever of the two it names first.
        return f"**{notes.letter(min(messages))}**"
    return number(max(float((image - images[0]).abs().max()) for image in images))


def matrix(rows: Sequence[str], columns: Sequence[str], notes: Notes) -> str:
    """Return a table with a row and a column for each name; each pair appears once."""
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        seen = columns.index(row) if row in columns else 0
        cells = [orders((row, name), notes) for name in columns[seen:]]
        lines.append(f"| `{row}` | " + " | ".join([""] * seen + cells) + " |")
    return "\n".join(lines) + "\n"


def lora_rows(names: Iterable[str]) -> list[str]:
    """Return a row for each condition: fused against loaded, and with against without."""
    rows = []
    for name in names:
        loaded = draw(LORA, name, output_type="pt")
        pipe = pipeline_for(LORA, name)
        pipe.fuse_lora()
        try:
            fused = draw_anew(LORA, name)
        finally:
            pipe.unfuse_lora()
        values = [number(float((loaded - other).abs().max())) for other in (fused, draw(name, output_type="pt"))]
        rows.append(f"| `{name}` | {' | '.join(values)} |")
    return rows


def page() -> str:
    """Return the whole page."""
    method_notes, other_notes = Notes(), Notes()
    together = [(names, orders(names, method_notes)) for names in promised()]
    return re.sub(
        "\n{3,}",
        "\n\n",
        PAGE.format(
            methods=matrix(METHODS, METHODS, method_notes),
            method_notes=method_notes.text(),
            classes=", ".join(f"{name} `{CASES[name].make.__name__}`" for name in METHODS),
            synthetic=matrix([*METHODS, *SYNTHETIC], SYNTHETIC, other_notes),
            synthetic_notes=other_notes.text(),
            promised="\n".join(f"| {' + '.join(names)} | {result} |" for names, result in together),
            lora="\n".join(lora_rows(METHODS)),
        ),
    )


def main() -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the page to this file instead of printing it")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = page()
    if args.write:
        temporary = args.write.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.rename(args.write)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
