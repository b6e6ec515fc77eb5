"""Errors of the command line, and messages in its own words."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping


class CommandLineError(Exception):
    """The command line is wrong; the message names the flag. Ends with exit code 2."""


# Flags whose names differ from the Python argument.
_FLAGS: Mapping[str, str] = {
    "adapter_config": "the adapter_config.json beside the file",
    "checkpoint": "the checkpoint",
    "budget_gib": "--vram",
    "entity_masks": "--entity",
    "entity_prompts": "--entity",
    "guidance_scale": "--guidance",
    "height": "--size",
    "loras": "the LoRA files",
    "max_sequence_length": "--text-tokens",
    "num_inference_steps": "--steps",
    "onload_device": "--device",
    "ram_budget_gib": "--ram",
    "source": "the source",
    "sources": "the LoRA files",
    "storage_dtype=torch.float8_e4m3fn": "--storage fp8",
    "storage_dtype": "--storage",
    "strict=False": "--no-strict",
    "overwrite=True": "--overwrite",
    "true_cfg_scale": "--true-cfg",
    "weight_name": "--lora-weight-name",
    "width": "--size",
}


# Entries of a training configuration whose names differ.
_ENTRIES: Mapping[str, str] = {
    "max_sequence_length": "`data.text_length`",
    "on_bad_sample='skip'": "`data.on_bad_sample: skip`",
    "allow_outside=True": "`allow_outside: true` for its source",
    "allow_urls=True": "`allow_urls: true` for its source",
    "allow_missing=True": "`data.captions.allow_missing: true`",
}


def in_entries(message: str) -> str:
    """Replace Python arguments in a message by the entries of a training configuration.

    Args:
        message (`str`): The message.

    Returns:
        `str`
    """
    for argument, entry in _ENTRIES.items():
        message = message.replace(f"`{argument}`", entry)
    return message


def in_flags(message: str, args: argparse.Namespace) -> str:
    """Replace Python arguments in a message by the flags of the command.

    Args:
        message (`str`): The message, which spells arguments as `` `name` `` or `` `name=value` ``.
        args (`argparse.Namespace`): The command line, whose own flags have the same names.

    Returns:
        `str`
    """
    if getattr(args, "command", None) == "train":
        return in_entries(message)

    def flag(found: re.Match[str]) -> str:
        name, value = found.group(1), found.group(2)
        if f"{name}={value}" in _FLAGS:
            return _FLAGS[f"{name}={value}"]
        spelled = _FLAGS.get(name) or (f"--{name.replace('_', '-')}" if name in vars(args) else None)
        if spelled is None:
            return found.group()
        return spelled if value is None else f"{spelled} {value}"

    return re.sub(r"`([a-z_0-9]+)(?:=([^`]*))?`", flag, message).replace("--size and --size", "--size")


def report(error: Exception, args: argparse.Namespace, code: int = 1) -> int:
    """Write an error in one line, in the flags of its command, and return the exit code.

    Args:
        error (`Exception`): The error.
        args (`argparse.Namespace`): The command line, with the command's `title`.
        code (`int`, defaults to 1): The exit code.

    Returns:
        `int`: the same code.
    """
    sys.stderr.write(f"{args.title}: {one_line(in_flags(str(error), args))}\n")
    return code


def in_short(error: Exception) -> str:
    """Return the message of an error in one line; what is wrong with a job stands side by side.

    Args:
        error (`Exception`): The error.
    """
    problems = getattr(error, "problems", None)
    text = " ".join(map(str, problems)) if problems else str(error)
    return one_line(text) or type(error).__name__


def one_line(text: str) -> str:
    """Return text without line breaks and control characters, which may come from a file."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())
