"""Silence the libraries on the terminal; this package's warnings and those of truncated prompts stay, reworded."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from textwrap import shorten
from typing import Any

from .errors import in_flags, one_line


# Warns of truncated prompts, and repeats what is cut off.
PROMPTS = "diffusers.pipelines.flux"
LONGEST = 400


@contextmanager
def quiet_libraries(args: argparse.Namespace) -> Iterator[None]:
    """Silence transformers and diffusers inside the context, and print this package's warnings in the command's style.

    Args:
        args (`argparse.Namespace`): The command line.
    """
    with ExitStack() as stack:
        stack.enter_context(_own_warnings(args))
        stack.enter_context(warnings.catch_warnings())
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", module="huggingface_hub")
        # transformers first: importing diffusers already asks it for classes, about which it logs messages.
        for library in ("transformers", "diffusers"):
            stack.enter_context(_errors_only(importlib.import_module(f"{library}.utils.logging")))
        yield


@contextmanager
def _errors_only(library: Any) -> Iterator[None]:
    verbosity = library.get_verbosity()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        library.enable_progress_bar()


class _InFlags(logging.Formatter):
    """Formats a record as a line of the command."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message = one_line(in_flags(record.getMessage(), self.args))
        return f"{self.args.title}: warning: {shorten(message, LONGEST, placeholder=' ...')}"


@contextmanager
def _own_warnings(args: argparse.Namespace) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_InFlags(args))
    package, prompts = (logging.getLogger(name) for name in (__name__.partition(".")[0], PROMPTS))
    level, propagate = prompts.level, prompts.propagate
    prompts.setLevel(logging.WARNING)
    prompts.propagate = False
    package.addHandler(handler)
    prompts.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        prompts.removeHandler(handler)
        prompts.setLevel(level)
        prompts.propagate = propagate
