"""`flux-ext train`: train LoRAs, weights and modules of conditions from a configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CommandLineError


EXAMPLES = """\
examples:
  flux-ext train --example-data shapes
  flux-ext train lora.yaml
  flux-ext train lora.yaml optimizer.lr=5e-5 run.updates=2000 --dry-run
  accelerate launch -m diffusers_flux_ext.cli.main train lora.yaml

A run goes on from its newest checkpoint. `docs/training.md` explains the configuration.
"""


def add_train_command(commands: Any) -> argparse.ArgumentParser:
    """Add `train` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a LoRA, weights or a condition's module",
        description="Train with a configuration in YAML or JSON. Entries after it replace those of the file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, nargs="?", help="YAML or JSON file")
    parser.add_argument("changes", nargs="*", metavar="ENTRY=VALUE", help="entries to replace, like optimizer.lr=1e-4")
    parser.add_argument("--stage", choices=["cache", "train"], default="train", help="stop after encoding the samples")
    parser.add_argument(
        "--memory", metavar="AMOUNT", help="memory of the GPU, like 12GB: choose settings that fit (train.memory)"
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument("--dry-run", action="store_true", help="check everything, report on model and data, and stop")
    parser.add_argument("--example-data", type=Path, metavar="DIR", help="write a data set of drawn shapes and stop")
    parser.add_argument("--count", type=int, default=64, help="samples of --example-data (default: 64)")
    parser.add_argument(
        "--from-reference-args", metavar="ARGS", help="print the configuration of a command line of DiffSynth-Studio"
    )
    return parser


def take_changes(args: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Take entries of the configuration that follow an option, where argparse expects no more of them.

    Args:
        args (`argparse.Namespace`): The command line; gets the entries.
        rest (`Sequence[str]`): What argparse did not know.

    Returns:
        `list[str]`: what is no entry.
    """
    entries = [word for word in rest if "=" in word and not word.startswith("-")]
    args.changes = [*args.changes, *entries]
    return [word for word in rest if word not in entries]


def run_train(args: argparse.Namespace) -> int:
    """Train.

    Args:
        args (`argparse.Namespace`): The command line.

    Returns:
        `int`: the exit code.

    Raises:
        CommandLineError: if there is nothing to do.
    """
    if args.example_data is not None:
        from ..training.data.example import write_example_data

        written = write_example_data(args.example_data, args.count, 0)
        sys.stdout.write(f"Wrote {args.count} samples to {written}\n")
        return 0
    from ..training.config import read_config
    from ..training.config.reading import print_config

    if args.from_reference_args is not None:
        from ..training.config.reference import from_reference_args

        sys.stdout.write(from_reference_args(args.from_reference_args))
        return 0
    if args.config is None:
        raise CommandLineError("Give a configuration, such as `flux-ext train lora.yaml`, or --example-data DIR.")
    if not args.config.is_file():
        raise CommandLineError(
            f"There is no file `{args.config}`. Give a configuration in YAML or JSON; `docs/training.md` has one."
        )
    changes = args.changes if args.memory is None else [*args.changes, f"train.memory={args.memory}"]
    config = read_config(args.config, changes)
    if args.print_config:
        sys.stdout.write(print_config(config))
        return 0
    return _train(config, args)


def _train(config: Any, args: argparse.Namespace) -> int:
    from ..training.run.build import build_run
    from ..training.run.processes import make_accelerator
    from ..training.run.report import dry_run

    if args.dry_run:
        sys.stdout.write(dry_run(config))
        return 0
    accelerator = make_accelerator(config)
    if config.differential is not None:
        return _train_differential(config, args, accelerator)
    run = build_run(config, accelerator, until_cache=args.stage == "cache")
    if run is None:
        sys.stdout.write(f"All samples are encoded in {config.data.cache}\n")
        return 0
    if run.trainer.is_main:
        _say(run.report)
    written = run()
    if run.trainer.is_main and run.compiled is not None:
        _say(run.compiled.describe())
    if run.trainer.is_main and (peaks := run.peaks.describe()):
        _say(peaks)
    return _end(written, run.trainer.is_main, f" after update {run.trainer.step}")


def _train_differential(config: Any, args: argparse.Namespace, accelerator: Any) -> int:
    from ..training.run.differential import run_differential

    if args.stage == "cache":
        raise CommandLineError(
            "`--stage cache` encodes the samples of one run, and `differential` has several. Leave it out: each run "
            "fills the cache when it begins."
        )
    main = accelerator is None or bool(accelerator.is_main_process)
    return _end(run_differential(config, accelerator, _say if main else lambda text: None), main)


def _end(written: list[Path], main: bool, when: str = "") -> int:
    if main:
        for path in written:
            _say(f"Wrote {path}")
        if not written:
            _say(f"Stopped and saved{when}. The same command goes on.")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
