"""Shared parts of the conversions of published files: the command line, and reporting failures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .layouts import LAYOUTS
from .messages import naming
from .reading import SAFETENSORS_SUFFIXES, open_safetensors
from .writing import check_target, save_tensors, written_at_once


Convert = Callable[..., dict[str, torch.Tensor]]


def command_parser(kind: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `flux-ext convert KIND`, with the text of `--help`."""
    return argparse.ArgumentParser(
        prog=f"flux-ext convert {kind}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def reported(work: Callable[[], None]) -> int:
    """Run a script's work and report a failure.

    Args:
        work (`Callable[[], None]`): The work.

    Returns:
        `int`: the exit code, 0 or 1, with the reason for a failure on stderr.
    """
    try:
        work()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def save_to_folder(load: Callable[[], Any], target: Path) -> int:
    """Save what `load` returns to a new folder; return the exit code, with the reason for a failure on stderr."""
    return reported(lambda: _save(load, target))


def _save(load: Callable[[], Any], target: Path) -> None:
    check_target(target)
    model = load()
    with written_at_once(target, overwrite=False) as temporary:
        model.save_pretrained(temporary)


def _convert_to_file(source: Path, target: Path, convert: Convert, layout: str, overwrite: bool) -> None:
    check_target(target, overwrite)
    with naming(source), open_safetensors(source) as file:
        converted = convert({key: file.get_tensor(key) for key in file.keys()}, to=layout)
    save_tensors(converted, target, {"format": "pt"}, overwrite)


def convert_checkpoint(
    kind: str, description: str | None, convert: Convert, model_class: Any, arguments: list[str] | None
) -> int:
    """Run the command line of a conversion between key layouts.

    Args:
        kind (`str`): Its name after `flux-ext convert`.
        description (`str`): Text of `--help`.
        convert (`Callable`): Takes a state dict and `to`, and returns the converted one.
        model_class (`type`): Has `from_single_file` and `save_pretrained`, for a target folder.
        arguments (`list[str]`, *optional*): Used instead of the process' arguments.

    Returns:
        `int`: the exit code.
    """
    parser = command_parser(kind, description)
    parser.add_argument("source", type=Path, help="safetensors file in any layout")
    parser.add_argument("target", type=Path, help="a .safetensors file, or a new folder")
    parser.add_argument("--to", choices=LAYOUTS, help="layout of a target file (default: diffusers)")
    parser.add_argument("--axes-dims-rope", type=int, nargs=3, help="rotary axes, for heads that are not 128 wide")
    parser.add_argument("--overwrite", action="store_true", help="replace a target file that exists")
    args = parser.parse_args(arguments)
    is_file = args.target.suffix in SAFETENSORS_SUFFIXES
    if args.to and not is_file:
        parser.error("--to is for a target file; a folder is always in diffusers' layout")
    if args.overwrite and not is_file:
        parser.error("--overwrite is for a target file; a folder must be new")
    if is_file:
        layout = args.to or "diffusers"
        return reported(lambda: _convert_to_file(args.source, args.target, convert, layout, args.overwrite))
    axes: Sequence[int] | None = args.axes_dims_rope
    sizes = {"axes_dims_rope": tuple(axes)} if axes else {}
    return save_to_folder(lambda: model_class.from_single_file(args.source, **sizes), args.target)
