"""`flux-ext serve`: a server of jobs, with OpenAI's images API and a page."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tiny import TINY
from .devices import check_device
from .env import package_version
from .errors import CommandLineError
from .extras import missing
from .parsing import parse_gib, parse_positive, whole_number


if TYPE_CHECKING:
    from ..server.assemble import Settings

EXAMPLES = """\
examples:
  flux-ext serve --model tiny --open
  flux-ext serve --model dev=black-forest-labs/FLUX.1-dev --lora style=style.safetensors@0.8 --vram 20
  flux-ext serve --model dev=flux1-dev --module union=FLUX.1-dev-ControlNet-Union-Pro-2.0 --host 0.0.0.0

Clients name what is given here and nothing else. `docs/server.md` explains the rest.
"""
EXTRA = ("fastapi", "uvicorn", "prometheus_client", "pydantic", "python_multipart", "yaml")


def add_serve_command(commands: Any) -> argparse.ArgumentParser:
    """Add `serve` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="draw for other programs and for a page in the browser",
        description="Serve jobs over HTTP: an API, OpenAI's images API, and a page on which regions are painted.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", action="append", metavar="[NAME=]MODEL", help="repository, folder, file or `tiny` (default: tiny)")
    add("--base", metavar="MODEL", help="folder or repository that gives what a --model file lacks")
    add("--lora", action="append", default=[], metavar="NAME=LORA[@WEIGHT]", help="a LoRA that jobs may name")
    add("--module", action="append", default=[], metavar="NAME=MODULE", help="a module that conditions may name")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=whole_number(0, 65535), default=8765, help="port (default: 8765; 0 takes a free one)")
    add("--token", action="append", default=[], help="token that clients need; made and shown for other hosts")
    add("--token-file", type=Path, metavar="FILE", help="file with one token a line")
    add("--allow-host", action="append", default=[], metavar="NAME", help="further name in requests' Host header")
    add("--open", action="store_true", help="open the page in a browser")
    add("--state", type=Path, metavar="DIR", help="folder of jobs and images (default: ~/.local/state/flux-ext)")
    add("--device", help="torch device (default: cuda, mps or cpu, the first there is)")
    add("--vram", type=parse_gib, metavar="GIB", help="GiB of the card for all models (default: no limit)")
    add("--queue", type=parse_positive, default=100, help="jobs that may wait (default: 100)")
    add("--batch", type=parse_positive, default=1, metavar="N",
        help="jobs that are drawn in one call where only prompt and seed differ; pixels then differ by at most 1 of "
        "255 from those of a job alone (default: 1)")  # fmt: skip
    add("--max-steps", type=parse_positive, default=100, help="most steps of a job (default: 100)")
    add("--max-side", type=parse_positive, default=2048, help="longest side that is drawn, in pixels (default: 2048)")
    add("--keep-jobs", type=parse_positive, default=1000, help="finished jobs that are kept (default: 1000)")
    add("--job-timeout", type=parse_positive, default=1800, metavar="SECONDS", help="longest job (default: 1800)")
    return parser


def run_serve(args: argparse.Namespace) -> int:
    """Serve until a signal comes.

    Args:
        args (`argparse.Namespace`): The command line.

    Returns:
        `int`: the exit code.

    Raises:
        CommandLineError: if the command line is wrong, or the extra is not installed.
    """
    names = missing(EXTRA)
    if names:
        raise CommandLineError(
            f'{", ".join(names)} is missing; install the extra: pip install "diffusers-flux-ext[serve]"'
        )
    check_device(args.device)
    from ..server.launch import address_of, is_loopback, open_socket, serve

    tokens = _tokens(args)
    local = is_loopback(args.host)
    if not local and not tokens:
        tokens = [secrets.token_urlsafe(24)]
    listening = open_socket(args.host, args.port)
    from ..server.assemble import make_server

    app, service = make_server(_settings(args, tokens, local))
    address = address_of(listening)
    page = f"{address}/?token={tokens[0]}" if tokens else address

    def started() -> None:
        sys.stdout.write(f"Listening on {page} (Ctrl+C stops)\n")
        sys.stdout.flush()
        if args.open:
            webbrowser.open(page)

    serve(app, service, listening, started)
    return 0


def _tokens(args: argparse.Namespace) -> list[str]:
    given = list(args.token)
    if args.token_file is not None:
        try:
            given += args.token_file.read_text(encoding="utf-8").split()
        except OSError as error:
            raise CommandLineError(f"--token-file {args.token_file} cannot be read: {error.strerror}") from None
    if any(len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token for token in given):
        raise CommandLineError("--token: expected at least 8 letters and digits without spaces")
    return given


def _settings(args: argparse.Namespace, tokens: list[str], local: bool) -> Settings:
    from ..server.assemble import Settings
    from ..server.guard import LOOPBACK
    from ..server.limits import Limits
    from ..server.offers import make_served

    try:
        served = make_served(
            [_model(given, args.base) for given in args.model or [TINY]],
            [_lora(given) for given in args.lora],
            [_named("--module", given) for given in args.module],
        )
    except ValueError as error:
        raise CommandLineError(str(error)) from None
    limits = Limits(
        queue=args.queue, steps=args.max_steps, side=args.max_side, keep_jobs=args.keep_jobs,
        job_seconds=args.job_timeout, batch=args.batch,
    )  # fmt: skip
    hosts = {*LOOPBACK, args.host, *args.allow_host} if local or args.allow_host else None
    state = args.state or _state_folder()
    return Settings(served, state, limits, args.device, args.vram, tokens, hosts, package_version())


def _state_folder() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "flux-ext"


def _model(given: str, base: str | None) -> tuple[str, dict[str, str]]:
    name, separator, path = given.partition("=")
    if not separator:
        # A repository or a folder is named by its last part.
        name, path = Path(given).stem if os.path.isfile(given) else Path(given).name, given
    _check_place("--model", path)
    is_file = os.path.isfile(path)
    return name, {"path": path} | ({"base": base} if base is not None and is_file else {})


def _lora(given: str) -> tuple[str, str, float]:
    name, rest = _named("--lora", given, check=False)
    path, separator, weight = rest.rpartition("@")
    if not separator:
        path, weight = rest, "1"
    try:
        found = float(weight)
    except ValueError:
        raise CommandLineError(f"--lora {given}: {weight!r} is not a weight, such as 0.8") from None
    _check_place("--lora", path)
    return name, path, found


def _named(flag: str, given: str, check: bool = True) -> tuple[str, str]:
    name, separator, path = given.partition("=")
    if not separator or not name or not path:
        raise CommandLineError(f"{flag} {given}: give a name for clients, {flag} NAME={given}")
    if check:
        _check_place(flag, path)
    return name, path


def _check_place(flag: str, path: str) -> None:
    """Check that a file or folder exists; anything that looks like a repository may be one."""
    from ..methods.loading import is_repository

    if path != TINY and not os.path.exists(path) and not is_repository(path):
        raise CommandLineError(f"{flag} {path}: there is no such file or folder, and it is not a repository's name")
