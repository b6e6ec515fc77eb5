"""What the conversion scripts share: the command line, and writing under a temporary name."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .layouts import LAYOUTS


Convert = Callable[..., dict[str, torch.Tensor]]


@contextmanager
def written_at_once(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its place when the block ends without an error."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def check_new(target: Path) -> None:
    """Raise a `ValueError` if there is something at `target` already."""
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or remove it first.")


def save_to_folder(load: Callable[[], Any], target: Path) -> int:
    """Write what `load` makes to a new folder; returns the exit code, with the reason of a failure on stderr."""
    try:
        check_new(target)
        model = load()
        with written_at_once(target) as temporary:
            model.save_pretrained(temporary)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def convert_to_file(source: Path, target: Path, convert: Convert, layout: str) -> None:
    """Write one safetensors file in `layout`."""
    with written_at_once(target) as temporary:
        save_file(convert(load_file(source), to=layout), temporary, metadata={"format": "pt"})


def convert_to_folder(source: Path, target: Path, model_class: Any, axes: Sequence[int] | None) -> None:
    """Write a folder in diffusers' layout."""
    check_new(target)
    model = model_class.from_single_file(source, **({"axes_dims_rope": tuple(axes)} if axes else {}))
    with written_at_once(target) as temporary:
        model.save_pretrained(temporary)


def convert_checkpoint(description: str, convert: Convert, model_class: Any, arguments: list[str] | None) -> int:
    """Run the command line of a conversion between key layouts.

    Args:
        description (`str`): Text of `--help`.
        convert (`Callable`): Takes a state dict and `to`, and returns the converted one.
        model_class (`type`): Has `from_single_file` and `save_pretrained`, for a target folder.
        arguments (`list[str]`, *optional*): Replaces the process' arguments.

    Returns:
        `int`: the exit code.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="safetensors file in any layout")
    parser.add_argument("target", type=Path, help="a .safetensors file, or a new folder")
    parser.add_argument("--to", choices=LAYOUTS, help="layout of a target file (default: diffusers)")
    parser.add_argument("--axes-dims-rope", type=int, nargs=3, help="rotary axes, for heads that are not 128 wide")
    args = parser.parse_args(arguments)
    is_file = args.target.suffix in (".safetensors", ".sft")
    if args.to and not is_file:
        parser.error("--to is for a target file; a folder is always in diffusers' layout")
    try:
        if is_file:
            convert_to_file(args.source, args.target, convert, args.to or "diffusers")
        else:
            convert_to_folder(args.source, args.target, model_class, args.axes_dims_rope)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
