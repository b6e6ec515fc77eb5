"""Measure sections of figures on a GPU.

python -m benchmarks.gpu --section eligen --minutes 8 --out results.json
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import logging

from benchmarks.gpu.clock import BrokenDeviceError
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.machine import describe, in_words, today
from benchmarks.gpu.results import Results
from benchmarks.gpu.rows import run_sections
from benchmarks.gpu.sections import SECTIONS, section_named
from benchmarks.gpu.sizes import SIZES


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the sections, the time and the file."""
    names = ", ".join(f"{section.letter} {section.name} ({section.minutes} min)" for section in SECTIONS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--section", nargs="+", default=[], help=f"by name or letter; all by default: {names}")
    parser.add_argument("--minutes", type=float, default=8.0, help="when to stop (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="the file of results, which grows")
    parser.add_argument("--retry", action="store_true", help="run rows again that failed")
    parser.add_argument("--device", default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--size", choices=SIZES, default="released", help="toy: shows that the sections work")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the file lacks.

    Args:
        arguments (`Sequence[str]`, *optional*): The command line.

    Returns:
        `int`: 0 when nothing is left, 1 when the time was over first, 2 for wrong arguments or without a device, 3 if
        the device broke down.
    """
    args = parse_args(arguments)
    try:
        sections = [section_named(name) for name in args.section] or list(SECTIONS)
        device = torch.device(args.device)
        torch.empty(1, device=device)
        results = Results(args.out, describe(device), args.size)
    except (ValueError, RuntimeError, AssertionError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    sys.stdout.write(f"{in_words(describe(device))}, {today()}\n")
    try:
        finished = run_sections(sections, Kit(device, SIZES[args.size]), results, args.minutes, args.retry)
    except BrokenDeviceError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    left = "Nothing is left." if finished else "The time is over: run the command again to go on."
    sys.stdout.write(f"{left} {args.out}\n")
    return 0 if finished else 1


if __name__ == "__main__":
    sys.exit(main())
