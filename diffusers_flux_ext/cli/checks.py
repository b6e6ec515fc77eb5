"""Checks of a command line that need no torch: they run before the imports, which take seconds."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..inputs.boxes import box_in_pixels
from ..methods.releases import check_counts
from ..tiny import TINY, TINY_CALL
from .errors import CommandLineError


_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_DEVICE = re.compile(r"[a-z]+(:\d+)?")
LORA_ENDINGS = (".safetensors", ".sft")
BUILT_IN = (TINY, "FLUX.1-dev")


def check_demo(args: argparse.Namespace) -> None:
    """Check `flux-ext demo`; raises [`CommandLineError`]."""
    _check_folder("--out", args.out)


def check_generate(args: argparse.Namespace) -> None:
    """Check `flux-ext generate`; raises [`CommandLineError`]."""
    _check_image(args.out)
    _check_model(args.model)
    if args.lora not in (None, "none"):
        _check_source("--lora", args.lora)
    if args.lora_weight_name is not None and args.lora in (None, "none"):
        raise CommandLineError("--lora-weight-name has no effect without --lora")
    true_cfg = TINY_CALL["true_cfg_scale"] if args.model == TINY and args.true_cfg is None else args.true_cfg or 1.0
    if args.negative_prompt is not None and true_cfg <= 1:
        raise CommandLineError("--negative-prompt has no effect without --true-cfg above 1")
    if args.device is not None and not _DEVICE.fullmatch(args.device):
        raise CommandLineError(f"--device {args.device} is not a device; give for example cuda, cuda:1, mps or cpu")
    if args.size is None and args.model != TINY:
        return  # The default size is the model's own.
    width, height = args.size or (TINY_CALL["width"], TINY_CALL["height"])
    for entity in args.entity:
        try:
            # The canvas has whole tokens.
            box_in_pixels(entity.box, width // 16 * 16, height // 16 * 16)
        except ValueError as error:
            raise CommandLineError(f"--entity {entity.text!r}: {error}") from None


def check_plan(args: argparse.Namespace) -> None:
    """Check `flux-ext plan`; raises [`CommandLineError`]."""
    try:
        check_counts(args.method)
    except ValueError as error:
        raise CommandLineError(f"--method: {error}") from None
    if args.model not in BUILT_IN:
        _check_model(args.model)
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


def _check_model(model: str) -> None:
    if model == TINY:
        return
    if os.path.isfile(model):
        raise CommandLineError(
            f"--model {model} is a file; give a repository or a folder in diffusers' layout, or {TINY}"
        )
    _check_source("--model", model)
    if os.path.isdir(model) and not os.path.isfile(os.path.join(model, "model_index.json")):
        raise CommandLineError(
            f"--model {model} has no model_index.json, so it is not a pipeline in diffusers' layout"
        )


def _check_source(flag: str, source: str) -> None:
    """Check that a file or folder exists; anything else may be a repository."""
    looks_local = os.path.isabs(source) or source.startswith(".") or source.endswith((*LORA_ENDINGS, ".bin", ".pt"))
    if os.path.exists(source) or (_REPOSITORY.fullmatch(source) and not looks_local):
        return
    raise CommandLineError(f"{flag} {source}: there is no such file or folder, and it is not the name of a repository")


def _check_image(path: Path) -> None:
    from PIL import Image

    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise CommandLineError(
            f"--out {path} does not end in an image suffix; use for example {path.with_suffix('.png')}"
        )
    if path.is_dir():
        raise CommandLineError(f"--out {path} is a folder; give the file to write")
    _check_folder("--out", path.parent)


def _check_folder(flag: str, folder: Path) -> None:
    """Check that a folder exists or can be created."""
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
