"""`flux-ext run`: many jobs into a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import check_folder
from .engines import (
    add_engine_flags,
    allow_files,
    check_engine,
    choose_device,
    is_url,
    make_engine,
    stopped_by_sigterm,
)
from .errors import CommandLineError, in_flags, in_short, one_line, report
from .extras import check_jobs_extra
from .parsing import parse_gib, parse_positive


if TYPE_CHECKING:
    from ..jobs.batch import Listed, Run

EXAMPLES = """\
examples:
  flux-ext run jobs.jsonl --out images
  flux-ext run jobs.yaml --out images --retry-failed
  flux-ext run jobs.jsonl --dry-run
  flux-ext run jobs.jsonl --out images --engine ray --workers 8 --ray-address auto
  accelerate launch --num_processes 8 -m diffusers_flux_ext.cli.main run jobs.jsonl --out images --engine accelerate
  flux-ext run s3://bucket/jobs.jsonl --out s3://bucket/images
  generate_jobs | flux-ext run - --out images

A run that was interrupted goes on where it stopped, and several processes may share a folder: the same command does
both. For each job DIR has <name>.png and <name>.json, or <name>.error.json, and at the end results.jsonl, in the order
of the list, and contact_sheet.png.

exit codes: 0 all jobs are done, 1 some failed (results.jsonl says which), 2 the command line or the list is wrong,
130 interrupted
"""
STDIN = "-"
SHOWN = 10


def add_run_command(commands: Any) -> argparse.ArgumentParser:
    """Add `run` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="draw a list of jobs into a folder, and go on after any interruption",
        description="Draw many jobs; those that share models, LoRAs and texts are drawn one after another.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "jobs",
        metavar="JOBS",
        help="a file of JSON lines, a YAML or JSON file with a list, a folder of job files, a URL of either, or - for "
        "the input",
    )
    add("--out", metavar="DIR", help="folder of the results, or its URL")
    add("--retry-failed", action="store_true", help="draw again what failed before")
    add("--dry-run", action="store_true", help="check all jobs and print what each needs, without loading weights")
    add("--vram", type=parse_gib, metavar="GIB", help="budget of the card for jobs that name none")
    add("--keep", type=parse_positive, default=1, metavar="N", help="models kept in memory (default: 1)")
    add("--device", help="torch device (default: cuda, mps or cpu, the first there is)")
    add_engine_flags(parser)
    return parser


def check_run(args: argparse.Namespace) -> None:
    """Check `flux-ext run`; raises [`CommandLineError`]."""
    check_jobs_extra()
    if args.jobs != STDIN and not is_url(args.jobs) and not Path(args.jobs).exists():
        raise CommandLineError(f"there is no file or folder {args.jobs}")
    if args.out is None and not args.dry_run:
        raise CommandLineError("--out is missing: give the folder of the results")
    if args.out is not None and not is_url(args.out):
        check_folder("--out", Path(args.out))
    check_engine(args)


def run_run(args: argparse.Namespace) -> int:
    """Draw the jobs; return the exit code."""
    from ..jobs.batch import JobListError, read_entries, read_listed

    try:
        listed = read_listed(read_entries(args.jobs))
    except JobListError as error:
        raise CommandLineError(str(error)) from None
    _report_list(listed, args.title)
    if all(each.work is None for each in listed):
        raise CommandLineError(f"{args.jobs} holds no job that is right")
    try:
        return _dry_run(listed, args) if args.dry_run else _draw(listed, args)
    except ValueError as error:
        # The URL of the results is of an unknown kind.
        raise CommandLineError(one_line(str(error))) from None
    except (OSError, RuntimeError) as error:
        # What was drawn so far is kept; the same command goes on.
        return report(error, args)


def _report_list(listed: Sequence[Listed], title: str) -> None:
    """Say which entries are wrong, and which repeat another one."""
    wrong = [(each.place, each.error) for each in listed if each.error is not None]
    for place, error in wrong[:SHOWN]:
        sys.stderr.write(f"{title}: {place}: {in_short(error)}\n")
    if len(wrong) > SHOWN:
        sys.stderr.write(f"{title}: and {len(wrong) - SHOWN} more are wrong\n")
    repeated = len(listed) - len({each.name for each in listed})
    if repeated:
        sys.stderr.write(f"{title}: {repeated} of {len(listed)} repeat another job and are drawn once\n")


def _dry_run(listed: Sequence[Listed], args: argparse.Namespace) -> int:
    from ..jobs.batch.needs import needs

    wrong = False
    for found in needs(listed, args.out, args.vram):
        wrong |= found["status"] in ("wrong", "failed")
        sys.stdout.write(f"{_in_words(found, args)}\n")
    return 1 if wrong else 0


def _in_words(found: dict[str, Any], args: argparse.Namespace) -> str:
    head = f"{found['place']} ({found['name']}): {found['status']}"
    if found["status"] == "done":
        return head
    if found["status"] != "open":
        return f"{head}: {one_line(in_flags(str(found['message']), args))}"
    drawn = f"{found['width']} x {found['height']}, {found['images']} image(s), {found['steps']} steps"
    if "unknown" in found:
        return f"{head}: {drawn}; memory: not known are {found['unknown']}"
    return f"{head}: {drawn}; {found['weights_gib']:.2f} GiB of weights, peak on the card {found['peak_gib']:.2f} GiB"


def _draw(listed: Sequence[Listed], args: argparse.Namespace) -> int:
    from ..jobs.batch import Run
    from .progress import Progress

    choose_device(args)
    run: Run = Run(listed, args.out, args.retry_failed, tries=None if args.engine == "ray" else args.tries)
    allow_files(args.workers or 0)
    with stopped_by_sigterm(), Progress(args.title, len(run.works), len(run.works) - len(run.open)) as progress:
        lines = run(make_engine(args, progress), progress.finish)
    counts = {status: sum(line["status"] == status for line in lines) for status in ("done", "failed", "open")}
    words = [f"{count} {status}" for status, count in counts.items() if count or status == "done"]
    sys.stdout.write(f"{', '.join(words)} of {len(lines)}: {run.folder.store.where('results.jsonl')}\n")
    return 0 if counts["done"] == len(lines) else 1
