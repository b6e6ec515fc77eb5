"""Checks of a command line that need no torch: they run before the imports, which take seconds."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..methods.releases import check_counts
from ..tiny import TINY
from .errors import CommandLineError


_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
SINGLE_FILES = (".safetensors", ".sft", ".gguf")
LORA_ENDINGS = (".safetensors", ".sft")
BUILT_IN = (TINY, "FLUX.1-dev")


def check_demo(args: argparse.Namespace) -> None:
    """Check `flux-ext demo`; raises [`CommandLineError`]."""
    check_folder("--out", args.out)


def check_plan(args: argparse.Namespace) -> None:
    """Check `flux-ext plan`; raises [`CommandLineError`]."""
    try:
        check_counts(args.method)
    except ValueError as error:
        raise CommandLineError(f"--method: {error}") from None
    if args.model not in BUILT_IN:
        check_model(args.model, files=False)
    if args.size is not None and any(side % 16 for side in args.size):
        raise CommandLineError(f"--size {args.size[0]}x{args.size[1]}: both sides must be a multiple of 16 pixels")


def check_lora(args: argparse.Namespace) -> None:
    """Check the commands of `flux-ext lora`; raises [`CommandLineError`]."""
    given = [path for name in ("source", "sources") for path in _listed(getattr(args, name, ()))]
    for path in given:
        if not path.exists():
            raise CommandLineError(f"there is no file or folder {path}")
    for name in ("checkpoint", "base", "tuned"):
        transformer = getattr(args, name, None)
        if transformer is not None and transformer != Path(TINY) and not transformer.exists():
            raise CommandLineError(f"there is no file or folder {transformer}; give a transformer's, or {TINY}")
    weights = getattr(args, "weights", None)
    if weights is not None and len(weights) != len(given):
        raise CommandLineError(f"--weights has {len(weights)} numbers for {len(given)} LoRA files; give one for each")
    if args.lora_command == "resize" and args.rank is None and args.energy is None:
        raise CommandLineError("give --rank, the highest rank of a layer, or --energy, the share that is kept")
    if args.lora_command != "inspect":
        _check_new_file(args.out, args.overwrite)


def check_model(model: str, files: bool = True) -> None:
    """Check a model's name; raises [`CommandLineError`].

    Args:
        model (`str`): A folder, a repository, a single file or `tiny`.
        files (`bool`): Whether single files are allowed.
    """
    if model == TINY:
        return
    if os.path.isfile(model) and not (files and model.endswith(SINGLE_FILES)):
        single = f", a single file ({', '.join(SINGLE_FILES)})" if files else ""
        raise CommandLineError(
            f"--model {model} is a file; give a repository or a folder in diffusers' layout{single}, or {TINY}"
        )
    check_source("--model", model)
    if os.path.isdir(model) and not os.path.isfile(os.path.join(model, "model_index.json")):
        raise CommandLineError(
            f"--model {model} has no model_index.json, so it is not a pipeline in diffusers' layout"
        )


def check_source(flag: str, source: str) -> None:
    """Check that a file or folder exists; anything else may be a repository. Raises [`CommandLineError`]."""
    looks_local = os.path.isabs(source) or source.startswith(".") or source.endswith((*LORA_ENDINGS, ".bin", ".pt"))
    if os.path.exists(source) or (_REPOSITORY.fullmatch(source) and not looks_local):
        return
    raise CommandLineError(f"{flag} {source}: there is no such file or folder, and it is not the name of a repository")


def check_folder(flag: str, folder: Path) -> None:
    """Check that a folder exists or can be created; raises [`CommandLineError`]."""
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise CommandLineError(f"{flag}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CommandLineError(f"{flag}: there is no permission to write to {above}")


def _check_new_file(path: Path, overwrite: bool) -> None:
    if path.suffix not in LORA_ENDINGS:
        raise CommandLineError(f"{path} does not end in .safetensors, the format that is written")
    if path.is_dir() or not path.parent.is_dir():
        raise CommandLineError(f"{path} cannot be written: it is a directory, or its folder does not exist")
    if path.exists() and not overwrite:
        raise CommandLineError(f"{path} exists; choose another name, or give --overwrite")


def _listed(value: Path | Sequence[Path]) -> Sequence[Path]:
    return [value] if isinstance(value, Path) else value
