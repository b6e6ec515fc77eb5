"""What runs on quantised transformers and text encoders, against the same weights unpacked: the table of the docs.

Run from the repository's root, where `gguf`, `torchao`, `optimum-quanto` and `bitsandbytes` are installed:

    python -m benchmarks.quantised_table --write docs/quantised_table.md
"""

import argparse
import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.support.conditions import METHODS
from benchmarks.support.quantised.kinds import (
    KINDS,
    condition_difference,
    kind_versions,
    text_difference,
    use_difference,
)
from benchmarks.support.quantised.uses import TEXT_USES, USES
from diffusers_flux_ext.checkpoints.writing import written_at_once


FAILS = "fails, in diffusers' own pipeline as well: its layer for GGUF cannot be traced by these versions of torch."
PAGE = """# Quantised weights: the table

Made by `python -m benchmarks.quantised_table --write docs/quantised_table.md` with the tiny model on the CPU, which
computes in float32: two steps with guidance. A number is the largest difference between pixels in [0, 1] from the same
call with the weights unpacked into ordinary layers; the tests demand 1e-4. Letters are refusals, whose messages stand
below. How to load each kind: [quantised.md](quantised.md).

{versions}

## Methods

{methods}
## LoRAs, memory, caches and the rest

{uses}
## T5

The rows of the table above with T5 quantised in place of the transformer. CLIP and ControlNets were not tried: they
are small, or published unquantised.


{texts}
{notes}"""


class Notes:
    """Messages of refusals, each with a letter."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}

    def letter(self, message: str) -> str:
        """Return the letter of a message."""
        return self.letters.setdefault(message, chr(ord("a") + len(self.letters)))

    def text(self) -> str:
        """Return all messages as a list."""
        return "".join(f"- **{letter}**: {message}\n" for message, letter in self.letters.items())


def _general(message: str) -> str:
    """Return a message without the names of classes, layers and libraries, which differ between kinds."""
    message = re.sub(r"quantised by [\w-]+ \(.*?\)", "quantised by ... (...)", " ".join(message.split()))
    message = re.sub(r"it is a \w+ with a \w+ of \w+", "it is a ... with a ... of ...", message)
    message = re.sub(r"such as those of `[^`]+`", "such as those of `...`", message)
    return re.sub(r"quantised by [\w-]+, whose", "quantised by ..., whose", message)


def cell(work: Callable[[], float], notes: Notes) -> str:
    """Return the difference that the work finds, or the letter of its refusal."""
    try:
        value = work()
    except ValueError as error:
        return f"**{notes.letter(_general(str(error)))}**"
    except (KeyError, torch._dynamo.exc.Unsupported):
        return f"**{notes.letter(FAILS)}**"
    return "0" if value == 0 else f"{value:.0e}"


def matrix(rows: Sequence[str], kinds: Sequence[str], work: Callable[[str, str], float], notes: Notes) -> str:
    """Return a table with a row for each name and a column for each kind."""
    lines = ["| | " + " | ".join(kinds) + " |", "|" + "---|" * (len(kinds) + 1)]
    for row in rows:
        cells = [cell(lambda row=row, kind=kind: work(row, kind), notes) for kind in kinds]  # type: ignore[misc]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(kinds: Sequence[str]) -> str:
    """Return the whole page."""
    notes = Notes()
    methods = matrix(METHODS, kinds, condition_difference, notes)
    uses = matrix(list(USES), kinds, use_difference, notes)
    texts = matrix(TEXT_USES, kinds, text_difference, notes)
    return PAGE.format(versions=kind_versions(), methods=methods, uses=uses, texts=texts, notes=notes.text())


def main() -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the page to this file instead of printing it")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = page([kind for kind, (library, _) in KINDS.items() if importlib.util.find_spec(library.split(".")[0])])
    if args.write:
        with written_at_once(args.write) as temporary:
            temporary.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
