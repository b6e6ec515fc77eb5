"""One transformer step with and without each method: time, tokens and weights.

Run from the repository's root (`--write` puts the table between its markers in a page):

    python -m benchmarks.methods --write benchmarks/README.md
    python -m benchmarks.methods --method references fill --repeats 9
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from benchmarks.method_steps import DEPTH, METHODS, QUARTER, WIDE, MethodStep, make_step
from diffusers_flux_ext import FluxCondition, FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer


MARKERS = ("<!-- methods: begin -->\n", "<!-- methods: end -->")


def make_small_step(
    conditions: Sequence[FluxCondition], channels: int = 0, hides_padding: bool = False
) -> tuple[Callable[[], Any], int]:
    """Return a function that runs one step of this table's transformer, and the tokens that the conditions add."""
    transformer = tiny_transformer(0, in_channels=64 + channels, out_channels=64, **DEPTH, **WIDE)
    return make_step(
        tiny_pipeline(FluxConditionedPipeline, transformer=transformer), conditions, QUARTER, hides_padding
    )


def processor_seconds(run: Callable[[], Any]) -> float:
    """Return processor time of one call, which other work on the machine disturbs least."""
    start = time.process_time()
    run()
    return time.process_time() - start


def weights_gib(method: MethodStep) -> float:
    """Return weights in bfloat16 of the modules in their released sizes, from shapes alone."""
    with torch.device("meta"):
        modules = [made.released() for made in method.modules.values()]
    return sum(weight.numel() for module in modules for weight in module.parameters()) * 2 / 2**30


def row(name: str, repeats: int, base: Callable[[], Any]) -> str:
    """Return the line of one method: medians of steps that take turns with steps without it."""
    method = METHODS[name]
    conditions = method.build({name: made.tiny() for name, made in method.modules.items()}, QUARTER)
    run, added = make_small_step(conditions, method.channels, method.hides_padding)
    times: dict[str, list[float]] = {"base": [], "with": []}
    for repeat in range(repeats + 1):
        for side, call in (("base", base), ("with", run)):
            seconds = processor_seconds(call)
            if repeat:
                times[side].append(seconds)
    medians = {side: statistics.median(values) for side, values in times.items()}
    cells = [f"{medians['base']:.3f}", f"{medians['with']:.3f}", f"**{medians['with'] / medians['base']:.2f}**"]
    return f"| {name} | {method.setup} | {added} | {weights_gib(method):.2f} | {' | '.join(cells)} |\n"


def table(names: Sequence[str], repeats: int) -> Iterator[str]:
    """Return the lines of the table of the named methods."""
    head = ["method", "setup", "tokens added", "weights, GiB", "without, s", "with, s", "time ratio"]
    yield "| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n"
    base, _ = make_small_step([])
    for name in names:
        yield row(name, repeats, base)


def write_between_markers(page: Path, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between the markers of a page; raise a `ValueError` if it has none."""
    before, begin, rest = page.read_text().partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not end:
        raise ValueError(f"{page} has no markers {markers}, between which the table belongs.")
    temporary = page.with_suffix(".tmp")
    temporary.write_text(before + begin + text + end + after)
    temporary.rename(page)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the table into this page, between its markers")
    args = parser.parse_args()
    if args.write and len(args.method) < len(METHODS):
        parser.error("--write is for the whole table: leave out --method")
    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = []
    with torch.no_grad():
        for line in table(args.method, args.repeats):
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    if args.write:
        write_between_markers(args.write, "".join(lines))


if __name__ == "__main__":
    main()
