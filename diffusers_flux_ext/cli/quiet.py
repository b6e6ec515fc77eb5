"""Keeps the libraries' notes off the terminal; this package's own warnings stay, in the words of the command line."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .errors import in_flags, one_line


@contextmanager
def quiet_libraries(args: argparse.Namespace) -> Iterator[None]:
    """Silence transformers and diffusers within, and write this package's warnings as lines of the command.

    Args:
        args (`argparse.Namespace`): The command line.
    """
    with ExitStack() as stack:
        stack.enter_context(_own_warnings(args))
        stack.enter_context(warnings.catch_warnings())
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", module="huggingface_hub")
        # transformers first: importing diffusers already asks it for classes, about which it has notes.
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
        """The line."""
        return f"{self.args.title}: warning: {one_line(in_flags(record.getMessage(), self.args))}"


@contextmanager
def _own_warnings(args: argparse.Namespace) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_InFlags(args))
    logger = logging.getLogger(__name__.partition(".")[0])
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
