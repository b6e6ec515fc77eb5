"""`flux-ext completion`: completion of flags, commands and files in the shell."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import CommandLineError


EXAMPLES = """\
examples:
  flux-ext completion bash > ~/.local/share/bash-completion/completions/flux-ext
  flux-ext completion zsh > ~/.zfunc/_flux-ext
  flux-ext completion fish > ~/.config/fish/completions/flux-ext.fish

zsh reads the folder once `fpath+=~/.zfunc` stands before `compinit` in ~/.zshrc.
"""
SHELLS = ("bash", "zsh", "fish")
_FILES = re.compile(r"\b(PATH|IMAGE|MASK|FILE|DIR|JOBS)\b")


def add_completion_command(commands: Any, build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add `completion` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "completion",
        help="completion of commands, flags and files for bash, zsh and fish",
        description="Print a script that completes commands, flags and files in a shell.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(build_parser=build_parser)


def run_completion(args: argparse.Namespace) -> int:
    """Print the script; return the exit code."""
    try:
        import shtab
    except ImportError:
        raise CommandLineError("shell completion needs shtab: `pip install 'diffusers-flux-ext[jobs]'`") from None
    parser: argparse.ArgumentParser = args.build_parser()
    _complete_files(parser, shtab.FILE)
    try:
        script = shtab.complete(parser, shell=args.shell)
    except NotImplementedError:
        raise CommandLineError(
            f"this version of shtab knows {', '.join(shtab.SUPPORTED_SHELLS)}, not {args.shell}: "
            f"`pip install --upgrade shtab`"
        ) from None
    sys.stdout.write(script if script.endswith("\n") else f"{script}\n")
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Complete files wherever a path is expected."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, files)
        elif action.type is Path or _FILES.search(str(action.metavar)):
            action.complete = files  # type: ignore[attr-defined]
