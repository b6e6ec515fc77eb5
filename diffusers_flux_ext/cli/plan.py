"""`flux-ext plan`: where everything goes on a card of a given size, without loading weights."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..tiny import TINY, TINY_CALL, named_model
from .errors import report
from .parsing import parse_gib, parse_positive, parse_size


STORAGE = {"fp8": "float8_e4m3fn", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}
EXAMPLES = """\
examples:
  flux-ext plan --vram 8 --size 1024 --method eligen
  flux-ext plan --vram 12 --method kontext=2 --method controlnet --storage fp8
  flux-ext plan --vram 6 --quantization gguf-q4_k --quantization text_encoder_2=gguf-q8_0
  flux-ext plan --model ./my-flux --vram 16 --size 1536x1024 --batch 2 --json
  flux-ext plan --list-methods

All figures are computed from shapes: nothing is measured, and nothing is loaded.

exit codes: 0 it fits, 1 it does not (the message says the smallest budget that works), 2 the command line is wrong
"""


def add_plan_command(commands: Any) -> argparse.ArgumentParser:
    """Add `plan` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="what fits on a card: where the weights go and the peak of each phase, without loading them",
        description="Plan a VRAM budget for FLUX.1-dev and any methods, without loading weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        default="FLUX.1-dev",
        help="FLUX.1-dev (default), `tiny`, or a folder or repository whose configs are read",
    )
    add("--vram", type=parse_gib, default=8.0, metavar="GIB", help="budget in GiB (default: 8)")
    add("--size", type=parse_size, metavar="N or WIDTHxHEIGHT", help="pixels (default: 1024; tiny: 128)")
    add("--batch", type=parse_positive, default=1, help="images at once (default: 1)")
    add(
        "--method",
        action="append",
        default=[],
        type=parse_method,
        metavar="NAME[=COUNT]",
        help="a method, with how many entities, references or images; may be given several times",
    )
    add("--text-tokens", type=parse_positive, help="text tokens of a prompt (default: 512; tiny: 32)")
    add("--storage", choices=sorted(STORAGE), help="store the blocks of transformer and ControlNets in 8 bits")
    add(
        "--quantization",
        action="append",
        default=[],
        metavar="[MODEL=]KIND",
        help="how the transformer, or MODEL, is quantised: gguf-q8_0, gguf-q4_k and other GGUF, int8, int4, fp8",
    )
    add("--ram", type=parse_gib, metavar="GIB", help="budget of host memory; what is over goes to disk")
    add("--json", action="store_true", help="print JSON for programs")
    add("--list-methods", action="store_true", help="print the methods")
    return parser


def parse_method(value: str) -> tuple[str, int | None]:
    """Read `NAME` or `NAME=COUNT`.

    Args:
        value (`str`): The method, and how many.

    Returns:
        `tuple[str, int or None]`

    Raises:
        argparse.ArgumentTypeError: if the count is not a number.
    """
    name, separator, number = value.partition("=")
    return name, parse_positive(number) if separator else None


def parse_quantization(values: list[str]) -> dict[str, str]:
    """Read `KIND`, which is for the transformer, and `MODEL=KIND`.

    Args:
        values (`list[str]`): What was given to `--quantization`.

    Returns:
        `dict[str, str]`: The kinds by the models' names.
    """
    parts = [value.rpartition("=") for value in values]
    return {model or "transformer": kind.lower() for model, _, kind in parts}


def run_plan(args: argparse.Namespace) -> int:
    """Print a plan.

    Args:
        args (`argparse.Namespace`): The arguments of `flux-ext plan`.

    Returns:
        `int`: the exit code.
    """
    import torch

    from ..methods.catalog import plan_methods
    from ..methods.releases import releases
    from ..offload.budget.plan import VRAMBudgetError

    if args.list_methods:
        known = releases()
        width = max(map(len, known))
        for name, release in known.items():
            number = f" ({release.counted})" if release.counted else ""
            sys.stdout.write(f"{name.ljust(width)}  {release.about}{number}\n")
        return 0
    sizes = TINY_CALL if args.model == TINY else {"width": 1024, "height": 1024, "max_sequence_length": 512}
    width, height = args.size or (sizes["width"], sizes["height"])
    try:
        plan = plan_methods(
            args.method,
            named_model(args.model),
            args.vram,
            height=height,
            width=width,
            batch=args.batch,
            storage_dtype=getattr(torch, STORAGE[args.storage]) if args.storage else None,
            quantization=parse_quantization(args.quantization),
            ram_budget_gib=args.ram,
            offload_dir="offload" if args.ram else None,
            max_sequence_length=args.text_tokens or sizes["max_sequence_length"],
        )
    except (OSError, ValueError) as error:
        return report(error, args, 1 if isinstance(error, VRAMBudgetError) else 2)
    sys.stdout.write((json.dumps(plan.to_dict(), indent=2) if args.json else str(plan)) + "\n")
    return 0
