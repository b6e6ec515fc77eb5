"""`flux-ext convert`: published files into folders for `from_pretrained`, or into another key layout."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..methods import METHODS
from ..methods.method import resolve
from .errors import CommandLineError


EXAMPLES = """\
examples:
  flux-ext convert transformer flux1-dev.safetensors dev-diffsynth.safetensors --to diffsynth
  flux-ext convert step1x-edit step1x-edit-i1258.safetensors step1x-edit
  flux-ext convert redux --help

LoRA files: flux-ext lora convert

exit codes: 0 done, 1 the file is wrong (one line says why, nothing is written), 2 the command line is wrong
"""


def converters() -> dict[str, tuple[str, str]]:
    """Return, for each kind of file, the package that converts it and the function's name there."""
    own = {
        kind: (method.package, reference)
        for method in METHODS.values()
        for kind, reference in method.converters.items()
    }
    return {"transformer": ("diffusers_flux_ext.models", ".convert:main"), **own}


def add_convert_command(commands: Any) -> None:
    """Add `convert` to the parser's commands."""
    kinds = ", ".join(sorted(converters()))
    parser = commands.add_parser(
        "convert",
        help="published files into folders for from_pretrained, or into another layout",
        description=f"Convert published files. Kinds: {kinds}. KIND --help lists the arguments of one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", metavar="KIND", help="what the file holds")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="source, target and options")


def check_convert(args: argparse.Namespace) -> None:
    """Check `flux-ext convert`; raise [`CommandLineError`]."""
    if args.kind not in converters():
        raise CommandLineError(f"there is no kind {args.kind!r}; choose one of {', '.join(sorted(converters()))}")


def run_convert(args: argparse.Namespace) -> int:
    """Convert; return the exit code."""
    convert: Callable[[list[str]], int] = resolve(*converters()[args.kind])
    return convert(args.arguments)
