"""`flux-ext job`: the schema of jobs, checks of job files, and the job of an image."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .errors import CommandLineError, one_line
from .extras import check_jobs_extra


EXAMPLES = """\
examples:
  flux-ext job show image.png > job.yaml
  flux-ext job check job.yaml
  flux-ext job schema > job.schema.json

exit codes: 0 all is well, 1 a job is wrong (each line names a field), 2 the command line is wrong
"""


def add_job_commands(commands: Any) -> argparse.ArgumentParser:
    """Add `job` and its commands to the parser's commands."""
    raw = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        "job",
        help="check job files, show the job of an image, print the schema",
        description="Work with jobs, the files that describe what is drawn; `docs/jobs.md` explains them.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    subcommands = parser.add_subparsers(dest="job_command", required=True, metavar="COMMAND")
    subcommands.add_parser("schema", help="print the JSON schema of a job", formatter_class=raw)
    check = subcommands.add_parser("check", help="check jobs without loading weights", formatter_class=raw)
    check.add_argument("sources", type=Path, nargs="+", metavar="FILE", help="job files, or images made by jobs")
    show = subcommands.add_parser("show", help="print the job of an image, or of a file", formatter_class=raw)
    show.add_argument("sources", type=Path, nargs=1, metavar="FILE", help="an image made by a job, or a job file")
    show.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    return parser


def check_job_command(args: argparse.Namespace) -> None:
    """Check that the files are there; raise [`CommandLineError`]."""
    check_jobs_extra()
    for path in getattr(args, "sources", ()):
        if not path.is_file():
            raise CommandLineError(f"there is no file {path}")


def run_job(args: argparse.Namespace) -> int:
    """Print the schema or a job, or check files; return the exit code."""
    from ..jobs import JobError, job_schema, read_job

    if args.job_command == "schema":
        sys.stdout.write(json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n")
        return 0
    if args.job_command == "check":
        # Every file is looked at, whatever is wrong with those before it.
        return max([_check(path, args.title) for path in args.sources])
    try:
        content = read_job(args.sources[0]).to_dict()
    except (JobError, OSError) as error:
        sys.stderr.write(f"{args.title}: {args.sources[0]}: {error}\n")
        return 1
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n" if args.json else in_yaml(content))
    return 0


def in_yaml(content: Any) -> str:
    """Return a job's entries as YAML."""
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=119)
    return text


def _check(path: Path, title: str) -> int:
    from ..jobs import JobError, JobFiles, check_job, read_job

    try:
        check_job(read_job(path), JobFiles(path.parent))
    except JobError as error:
        for problem in error.problems:
            sys.stderr.write(f"{title}: {path}: {one_line(str(problem))}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{title}: {path}: {one_line(str(error))}\n")
        return 1
    sys.stdout.write(f"{path}: fine\n")
    return 0
