"""`flux-ext generate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CommandLineError, in_flags, one_line, report
from ..extras import missing_for_jobs
from ..job import in_yaml
from ..progress import steps_shown
from .build import flag_of
from .plain import draw_plainly
from .start import Draft, draft
from .table import add_flags
from .values import condition, setting


EXAMPLES = """\
examples:
  flux-ext generate --model tiny --prompt "a white background" --entity "a red circle@0.1,0.3,0.45,0.7" \\
      --entity "a blue star@0.55,0.3,0.9,0.7" --out shapes.png
  flux-ext generate --model black-forest-labs/FLUX.1-dev --prompt "a cat and a dog on a sofa" \\
      --entity "a black cat@60,300,480,950" --entity "a brown dog@540,300,960,950" \\
      --lora DiffSynth-Studio/Eligen --offload model --out pets.png
  flux-ext generate --model black-forest-labs/FLUX.1-dev --prompt "a house" --control edges.png \\
      --controlnet InstantX/FLUX.1-dev-Controlnet-Union --lora style.safetensors@0.8 --seed 1 2 3 --vram 12
  flux-ext generate --job image.png --out again.png

Everything that a job can say can be given by --condition and --set; `docs/command_line.md` has more examples.

exit codes: 0 done, 1 the work failed (the message says why), 2 the command line is wrong, 130 interrupted
"""


def add_generate_command(commands: Any) -> argparse.ArgumentParser:
    """Add `generate` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "generate",
        help="draw images with any FLUX.1 repository and any method",
        description="Draw images, with entities in regions of their own and any other method.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    add = parser.add_argument_group("the job").add_argument
    add("--condition", action="append", default=[], type=condition, metavar="TYPE:FIELD=VALUE,...",
        help="any condition, such as `ReduxImages:images=[a.png],scale=0.5`; may be repeated")  # fmt: skip
    add("--set", action="append", default=[], type=setting, metavar="FIELD=VALUE",
        help="any field of the job, such as `call.sigmas=[1, 0.5]`; may be repeated")  # fmt: skip
    add("--job", type=Path, metavar="FILE", help="a job in JSON or YAML, or an image made by one; flags override it")
    add("--save-job", type=Path, metavar="FILE", help="write the job there, as YAML or JSON")
    add("--dry-run", action="store_true", help="check everything without loading weights, print the job, and stop")
    add = parser.add_argument_group("where").add_argument
    add("--device", help="torch device (default: cuda, mps or cpu, the first there is)")
    add("--out", type=Path, default=Path("flux-ext.png"),
        help="image to write (default: flux-ext.png); several get numbers")  # fmt: skip
    return parser


def run_generate(args: argparse.Namespace) -> int:
    """Draw; return the exit code."""
    if missing_for_jobs():
        return _run_plainly(args)
    from ...checkpoints.writing import check_target
    from ...jobs import JobError, JobFiles, check_job, read_job, write_job

    plan: Draft | None = None
    is_checked = False
    try:
        if args.out.exists():
            check_target(args.out, overwrite=True)
        plan = draft(args)
        job, files = read_job(plan.content), JobFiles(plan.base, plan.stored)
        check_job(job, files)
        is_checked = True
        if args.save_job is not None:
            write_job(job, args.save_job)
        if args.dry_run:
            sys.stdout.write(in_yaml(job.to_dict()))
            return 0
        written = _draw(job, files, args)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, JobError):
            return report(error, args)
        words = _in_words(error, plan, args)
        if not is_checked:
            raise CommandLineError(words) from None
        sys.stderr.write(f"{args.title}: {words}\n")
        return 1
    return _printed(written)


def _run_plainly(args: argparse.Namespace) -> int:
    from ...checkpoints.writing import check_target

    try:
        if args.out.exists():
            check_target(args.out, overwrite=True)
        written = draw_plainly(draft(args).content, args)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        return report(error, args)
    return _printed(written)


def _printed(written: Sequence[Path]) -> int:
    sys.stdout.writelines(f"{path.resolve()}\n" for path in written)
    return 0


def _draw(job: Any, files: Any, args: argparse.Namespace) -> list[Path]:
    from ...checkpoints.writing import numbered
    from ...jobs import JobRunner, save_result_image

    with steps_shown(args.title) as on_step:
        result = JobRunner(device=args.device).run(job, files, on_step)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for index, image in enumerate(result.images):
        written.append(args.out.parent / numbered(args.out.name, index, len(result.images)))
        save_result_image(image, written[-1], job, index, files)
    return written


def _in_words(error: Any, plan: Draft | None, args: argparse.Namespace) -> str:
    """Name the flags in place of a job's fields."""
    lines = []
    for problem in error.problems:
        flag = None if plan is None else flag_of(problem.field, plan.content)
        joined = " " if problem.message.startswith(("is ", "has ", "cannot ")) else ": "
        text = str(problem) if flag is None else f"{flag}{joined}{problem.message}"
        lines.append(one_line(in_flags(text, args)))
    return "\n  ".join(lines)
