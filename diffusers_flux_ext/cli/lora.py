"""`flux-ext lora`: explain, convert, merge, resize, extract and fuse LoRA files."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tiny import TINY, named_model
from .errors import one_line, report
from .parsing import parse_number, parse_positive, parse_scale, parse_share


if TYPE_CHECKING:
    from ..lora.tools.report import LoRAReport

LAYOUTS = ("diffusers", "kohya", "bfl", "diffsynth", "onetrainer", "xlabs")
DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")
BAR_WIDTH = 40
EXAMPLES = """\
examples:
  flux-ext lora inspect style.safetensors
  flux-ext lora convert style.safetensors style-diffusers.safetensors --to diffusers
  flux-ext lora merge a.safetensors b.safetensors --weights 0.8 0.5 --out both.safetensors
  flux-ext lora resize style.safetensors --rank 16 --out small.safetensors
  flux-ext lora extract --base flux1-dev.safetensors --tuned mine.safetensors --rank 64 --out mine-lora.safetensors
  flux-ext lora fuse flux1-dev.safetensors style.safetensors --out flux1-style.safetensors

exit codes: 0 done, 2 a file or an argument is wrong (one line says why, nothing is written)
"""


def add_lora_commands(commands: Any) -> argparse.ArgumentParser:
    """Add `lora` and its own commands to the parser's."""
    raw = argparse.RawDescriptionHelpFormatter
    lora: argparse.ArgumentParser = commands.add_parser(
        "lora",
        help="explain, convert, merge, resize, extract and fuse LoRA files of any trainer",
        description="Work on FLUX.1 LoRA files of any trainer, without loading a model.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    own = lora.add_subparsers(dest="lora_command", required=True, metavar="COMMAND")
    inspect = own.add_parser("inspect", help="what a file holds, how strong it is by block, and who reads it")
    inspect.add_argument("source", type=Path, help="a LoRA file, or a folder with one")
    inspect.add_argument("--json", action="store_true", help="print JSON for programs")
    convert = own.add_parser("convert", help="write a file in another layout, without loss")
    convert.add_argument("source", type=Path, help="a LoRA file, or a folder with one")
    convert.add_argument("out", type=Path, help="the safetensors file to write")
    convert.add_argument("--default-alpha", type=parse_scale, help="alpha of layers for which the file gives none")
    merge = own.add_parser("merge", help="one file from several, exact or of a given rank")
    merge.add_argument("sources", type=Path, nargs="+", help="LoRA files in any layouts")
    merge.add_argument("--weights", type=parse_number, nargs="+", help="a weight for each (default: 1)")
    merge.add_argument("--rank", type=parse_positive, help="highest rank of a layer (default: exact)")
    resize = own.add_parser("resize", help="lower the ranks by singular values")
    resize.add_argument("source", type=Path, help="a LoRA file")
    resize.add_argument("--rank", type=parse_positive, help="highest rank of a layer")
    resize.add_argument("--energy", type=parse_share, help="share of the squared singular values to keep, as 0.95")
    extract = own.add_parser("extract", help="a LoRA from a tuned transformer and the one it was tuned from")
    extract.add_argument("--base", type=Path, required=True, help="the transformer before: a file, a folder or `tiny`")
    extract.add_argument("--tuned", type=Path, required=True, help="the transformer after, alike")
    extract.add_argument("--rank", type=parse_positive, required=True, help="highest rank of a layer")
    extract.add_argument("--energy", type=parse_share, help="share of the squared singular values that is enough")
    fuse = own.add_parser("fuse", help="add LoRAs to the weights of a transformer")
    fuse.add_argument("checkpoint", type=Path, help="the transformer: a file or a folder in any layout, or `tiny`")
    fuse.add_argument("sources", type=Path, nargs="+", help="LoRA files")
    fuse.add_argument("--weights", type=parse_number, nargs="+", help="a weight for each (default: 1)")
    for command in (merge, resize, extract, fuse):
        command.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    for command in (convert, merge, resize, extract):
        command.add_argument("--to", choices=LAYOUTS, default="diffusers", help="layout (default: diffusers)")
        command.add_argument("--dtype", choices=DTYPES, help="dtype of the factors (default: as stored)")
    for command in (convert, merge, resize, extract, fuse):
        command.add_argument("--overwrite", action="store_true", help="replace an existing file")
        command.add_argument("--json", action="store_true", help="print JSON for programs")
    for command in (convert, merge, resize, fuse):
        command.add_argument(
            "--no-strict", dest="strict", action="store_false", help="leave out what is not understood, with a warning"
        )
    return lora


def run_lora(args: argparse.Namespace) -> int:
    """Run a command.

    Args:
        args (`argparse.Namespace`): The parsed command line.

    Returns:
        `int`: the exit code.
    """
    from ..lora.errors import LoRAError

    try:
        _COMMANDS[args.lora_command](args)
    except (LoRAError, OSError) as error:
        return report(error, args, 2)
    return 0


def _options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    import torch

    options = {name: getattr(args, name) for name in names}
    return options | {"dtype": getattr(torch, args.dtype) if args.dtype else None}


def _inspect(args: argparse.Namespace) -> None:
    from ..lora.tools.report import inspect_lora

    report = inspect_lora(args.source)
    if args.json:
        sys.stdout.write(json.dumps(_plain(report.to_dict()), indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write(describe(report, args.source.name))


def _convert(args: argparse.Namespace) -> None:
    from ..lora.tools.convert import convert_lora_file

    options = _options(args, "to", "strict", "default_alpha", "overwrite")
    convert_lora_file(args.source, args.out, **options)
    _written(args, {"layout": args.to})


def _merge(args: argparse.Namespace) -> None:
    from ..lora.tools.algebra import merge_loras

    _save(args, lambda: merge_loras(args.sources, **_options(args, "weights", "to", "rank", "strict")))


def _resize(args: argparse.Namespace) -> None:
    from ..lora.tools.algebra import resize_lora

    _save(args, lambda: resize_lora(args.source, **_options(args, "rank", "energy", "to", "strict")))


def _extract(args: argparse.Namespace) -> None:
    from ..lora.tools.extract import extract_lora

    base, tuned = _transformer(args.base), _transformer(args.tuned)
    _save(args, lambda: extract_lora(base, tuned, **_options(args, "rank", "energy", "to")))


def _fuse(args: argparse.Namespace) -> None:
    from ..lora.tools.fuse import fuse_lora_into

    fuse_lora_into(_transformer(args.checkpoint), args.sources, args.out, args.weights, args.strict, args.overwrite)
    _written(args, {"loras": [str(source) for source in args.sources]})


def _transformer(path: Path) -> Path:
    """Return a transformer's file or folder; `tiny` is the embedded model."""
    return Path(named_model(TINY)) / "transformer" if path == Path(TINY) else path


def _save(args: argparse.Namespace, make: Callable[[], Any]) -> None:
    from ..lora.files import check_writable, save_lora

    check_writable(args.out, args.overwrite)
    result = make()
    save_lora(args.out, result.state_dict, result.metadata, args.overwrite)
    worst = max(result.errors, key=result.errors.__getitem__, default=None)
    _written(args, {"error": result.error, "worst": worst, "worst_error": result.errors.get(worst or "", 0.0)})


def _written(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    facts = {"written": str(args.out.resolve()), "size": args.out.stat().st_size, **facts}
    if args.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    lines = [f"{facts['written']} ({_bytes(facts['size'])})"]
    if facts.get("error"):
        lines.append(
            f"relative error {_percent(facts['error'])} of all layers together, "
            f"at most {_percent(facts['worst_error'])}, in {facts['worst']}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "inspect": _inspect, "convert": _convert, "merge": _merge, "resize": _resize, "extract": _extract, "fuse": _fuse,
}  # fmt: skip


# ---- tables -------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Return the value with `null` for numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.2f} GB"


def _counted(counts: Mapping[Any, int]) -> str:
    spelled = [f"{key:g} ({count})" if isinstance(key, float) else f"{key} ({count})" for key, count in counts.items()]
    return ", ".join(spelled[:8]) + (f" and {len(spelled) - 8} more" if len(spelled) > 8 else "") or "none"


def describe(report: LoRAReport, name: str) -> str:
    """Return a report as a table for people, with a bar for the strength of every block.

    Args:
        report (`LoRAReport`): The report.
        name (`str`): What to call the file.

    Returns:
        `str`: Lines of text.
    """
    rows = [
        ("file", f"{name}, {report.num_tensors} tensors, {_bytes(report.size)}, {_counted(report.dtypes)}"),
        ("format", report.format),
        ("layers", ", ".join(f"{have}/{of} {kind}" for kind, (have, of) in report.modules.items())),
        ("text encoders", ", ".join(f"{name} {n}" for name, n in report.text_encoders.items()) or "none"),
        ("kinds", _counted(report.kinds)),
        ("ranks", _counted(report.ranks)),
        ("alphas", _counted(report.alphas)),
        ("scales", _counted(report.scales)),
        ("header", ", ".join(sorted(report.metadata)) or "empty"),
        ("diffusers", f"its own loader applies it {report.diffusers}" if report.diffusers != "fails" else "fails"),
    ]
    lines = [f"{title:14} {one_line(text)}" for title, text in rows]
    notes = [*(f"diffusers: {reason}" for reason in report.diffusers_reasons), *report.warnings]
    for title, found in (("not understood", report.unmapped), ("NaN or infinite", report.nonfinite)):
        if found:
            notes.append(f"{title}: {len(found)} keys, such as {', '.join(found[:10])}")
    if report.extras:
        notes.append(f"textual inversions: {', '.join(report.extras[:10])}")
    lines += [f"  - {one_line(note)}" for note in notes]
    return "\n".join([*lines, "", "norm of the update by block", *_bars(report.norms)]) + "\n"


def _bars(norms: Mapping[str, float]) -> list[str]:
    # Blocks share a scale so that they can be compared; text encoders are separate models.
    highest = max((norm for norm in norms.values() if norm < float("inf")), default=0.0) or 1.0
    width = max(map(len, norms), default=0)
    return [
        f"  {block:{width}} {'#' * round(BAR_WIDTH * min(norm / highest, 1.0) if norm == norm else 0):{BAR_WIDTH}} "
        f"{norm:.4g}"
        for block, norm in norms.items()
    ]
