"""`flux-ext describe`: Nexus-Gen answers a question about an image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .checks import check_source
from .devices import best_device
from .errors import CommandLineError, report
from .extras import check_jobs_extra
from .parsing import parse_positive


EXAMPLES = """\
examples:
  flux-ext describe photo.png --nexus-gen Nexus-GenV2
  flux-ext describe photo.png --nexus-gen Nexus-GenV2 --question "What does the cat wear?"

Nexus-GenV2 is a folder with the published files. `docs/nexus_gen.md` says where they are.
"""


def add_describe_command(commands: Any) -> argparse.ArgumentParser:
    """Add `describe` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "describe",
        help="an image in words, or an answer about it",
        description="Describe an image with Nexus-Gen's language model, or answer a question about it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("image", type=Path, metavar="IMAGE", help="the image")
    add("--nexus-gen", required=True, metavar="PATH", help="folder of Nexus-Gen's published files, or repository")
    add("--question", help="what to ask (default: a brief description)")
    add("--max-new-tokens", type=parse_positive, default=1024, metavar="N", help="longest answer (default: 1024)")
    add("--device", help="torch device (default: cuda, mps or cpu, the first there is)")
    return parser


def check_describe(args: argparse.Namespace) -> None:
    """Check `flux-ext describe`; raise [`CommandLineError`]."""
    check_jobs_extra()
    if not args.image.is_file():
        raise CommandLineError(f"there is no image {args.image}")
    check_source("--nexus-gen", args.nexus_gen)
    if args.question is not None and not args.question.strip():
        raise CommandLineError("--question is empty")


def run_describe(args: argparse.Namespace) -> int:
    """Print the answer; return the exit code."""
    try:
        answer = _answer(args)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        return report(error, args)
    sys.stdout.write(f"{answer}\n")
    return 0


def _answer(args: argparse.Namespace) -> str:
    import torch

    from .. import NexusGenModel, QwenVLProcessor
    from ..checkpoints.model_configs import building
    from ..jobs import JobFiles
    from ..jobs.values import ImageValue

    image = JobFiles().image(ImageValue(str(args.image)), "image")
    device = args.device or best_device()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    folder = Path(args.nexus_gen)
    processor = folder / "processor" if (folder / "processor").is_dir() else args.nexus_gen
    with building(args.nexus_gen, passing=(OSError, torch.OutOfMemoryError), what="Nexus-Gen's language model"):
        reader = QwenVLProcessor.from_pretrained(processor)
        model: Any = NexusGenModel.from_pretrained(args.nexus_gen, dtype=dtype).to(device)
    question = {} if args.question is None else {"question": args.question}
    answer: str = model.describe(image, processor=reader, max_new_tokens=args.max_new_tokens, **question)
    return answer
