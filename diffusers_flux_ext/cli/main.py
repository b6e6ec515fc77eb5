"""The `flux-ext` command."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..methods.installed import GROUP, load_installed_methods
from .checks import check_demo, check_lora, check_plan
from .completion import add_completion_command, run_completion
from .convert import add_convert_command, check_convert, run_convert
from .describe import add_describe_command, check_describe, run_describe
from .devices import check_device
from .env import add_env_command, package_version, run_env
from .errors import CommandLineError, in_flags, one_line, report
from .generate.checks import check_generate
from .generate.command import add_generate_command, run_generate
from .job import add_job_commands, check_job_command, run_job
from .lora import add_lora_commands, run_lora
from .parsing import parse_seed
from .plan import add_plan_command, run_plan
from .quiet import quiet_libraries
from .runs import add_run_command, check_run, run_run
from .serve import add_serve_command, run_serve
from .train import add_train_command, run_train, take_changes


EXAMPLES = """\
examples:
  flux-ext demo --out demo
  flux-ext generate --model tiny --prompt "a white background" --entity "a red circle@0.1,0.3,0.45,0.7" \\
      --entity "a blue star@0.55,0.3,0.9,0.7" --out shapes.png
  flux-ext run jobs.jsonl --out images
  flux-ext lora inspect style.safetensors
  flux-ext generate --model black-forest-labs/FLUX.1-dev --prompt "a cat and a dog on a sofa" \\
      --entity "a black cat@60,300,480,950" --entity "a brown dog@540,300,960,950" \\
      --lora DiffSynth-Studio/Eligen --offload model --out pets.png

exit codes: 0 done, 1 the work failed (the message says why), 2 the command line is wrong, 130 interrupted
"""


class _Version(argparse.Action):
    """Print the version, which is looked up only on demand."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(f"flux-ext {package_version()}\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="flux-ext",
        description="FLUX.1 methods that diffusers lacks, from the command line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    demo = commands.add_parser(
        "demo",
        help="draw a contact sheet with the embedded tiny model, offline",
        description="Draw scenes with the embedded tiny FLUX.1: the prompt alone, the regions, and the result.",
        epilog="examples:\n  flux-ext demo --out demo --seed 3\n  flux-ext demo --all --out demo",
        formatter_class=raw,
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to (default: demo)")
    demo.add_argument("--seed", type=parse_seed, default=0, help="seed of the scenes and of the noise (default: 0)")
    demo.add_argument(
        "--all", action="store_true", help="draw what each module of the package does, alone and all together"
    )
    add_generate_command(commands)
    add_run_command(commands)
    add_describe_command(commands)
    add_job_commands(commands)
    add_convert_command(commands)
    add_lora_commands(commands)
    add_plan_command(commands)
    add_serve_command(commands)
    add_train_command(commands)
    add_env_command(commands)
    add_completion_command(commands, build_parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments (`Sequence[str]`, *optional*): The command line without the program's name.

    Returns:
        `int`: the exit code: 0 done, 1 the work failed, 2 the command line is wrong, 130 interrupted.
    """
    _load_installed_methods()
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    rest = take_changes(args, rest) if args.command == "train" else rest
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Prefix of messages.
    below = getattr(args, f"{args.command}_command", None)
    args.title = " ".join(["flux-ext", args.command, *filter(None, [below])])
    try:
        _CHECKS.get(args.command, lambda args: None)(args)
        return _COMMANDS[args.command](args)
    except CommandLineError as error:
        sys.stderr.write(f"{args.title}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        # A progress bar may have left its line open.
        sys.stderr.write(f"\n{args.title}: interrupted\n")
        return 130


def _load_installed_methods() -> None:
    for entry, error in load_installed_methods().items():
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        sys.stderr.write(f"flux-ext: the entry point `{entry}` of {GROUP!r} is left out: {reason}\n")


def _run_quietly(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        check_device(getattr(args, "device", None))
        with quiet_libraries(args):
            return command(args)

    return run


def _run_training(args: argparse.Namespace) -> int:
    try:
        return run_train(args)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        # Lists of problems keep their lines.
        sys.stderr.write(f"{args.title}: {in_flags(str(error), args)}\n")
        return 1


def _serve(args: argparse.Namespace) -> int:
    try:
        return run_serve(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return report(error, args)


def _draw_demo(args: argparse.Namespace) -> int:
    # torch and diffusers load only now, so that --help and a wrong command line answer at once.
    from . import demo, showcase

    try:
        written = (showcase.showcase if args.all else demo.demo)(args)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        return report(error, args)
    sys.stdout.write(f"{written.resolve()}\n")
    return 0


_CHECKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "convert": check_convert, "demo": check_demo, "describe": check_describe, "generate": check_generate,
    "job": check_job_command, "lora": check_lora, "plan": check_plan, "run": check_run,
}  # fmt: skip
_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "completion": run_completion,
    "convert": _run_quietly(run_convert),
    "demo": _run_quietly(_draw_demo),
    "describe": _run_quietly(run_describe),
    "generate": _run_quietly(run_generate),
    "env": run_env,
    "job": _run_quietly(run_job),
    "lora": _run_quietly(run_lora),
    "plan": _run_quietly(run_plan),
    "run": _run_quietly(run_run),
    "serve": _run_quietly(_serve),
    "train": _run_quietly(_run_training),
}


__all__ = ["build_parser", "main"]


if __name__ == "__main__":
    sys.exit(main())
