"""Every generated LoRA file through diffusers' loader, the reference's and ours: which apply what the file means.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.lora_conformance --write docs/lora_conformance.md
    python -m benchmarks.lora_conformance --format kohya --list
"""

import argparse
import contextlib
import io
import signal
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from diffusers.utils import logging

from benchmarks.support.lora_files import FORMATS, LoRAFile, cases, make
from benchmarks.support.lora_files.readers import read_converted, read_diffsynth, read_diffusers, read_loaded
from benchmarks.support.lora_files.verdict import VERDICTS, Reading, judge, keeps_magnitudes


READERS: dict[str, Callable[[LoRAFile, Path], Reading]] = {
    "diffusers": read_diffusers,
    "reference": read_diffsynth,
    "ours": read_converted,
    "ours, loaded": read_loaded,
}
SECONDS = 10
PAGE = """# LoRA files: who reads what

Made by `python -m benchmarks.lora_conformance --write docs/lora_conformance.md`: {files} generated files of {formats}
formats for tiny models, each with a known change of every layer, read by diffusers {diffusers}
(`FluxPipeline.load_lora_weights`, read back from PEFT's layers), by the reference package {reference}
(`FluxLoRALoader`, fused into zeros), and by this package: `convert_lora` to diffusers' layout, and
`FluxConditionedPipeline.load_lora_weights` with the change measured on the outputs of every Linear.

- **exact**: every layer changes as the file says, to 1e-5 relative, biases and overwritten norms included, and no
  other layer changes. **partial**: some layers are left out, none is wrong. **wrong**: at least one layer changes
  otherwise. **no-op**: nothing changes. **error**: an exception, or no answer within {seconds} seconds of
  processor time.
- Files with DoRA are judged by the change before normalisation; the second table tells who also applies the
  magnitudes. Those of inputs (OneTrainer's default) have no place in PEFT's layout: a converted file keeps them as
  `.dora_scale`, which counts as lost here, and which this package applies when it loads the file.
- diffusers' converters hard-code the released width and depth; these were replaced by the tiny model's, so the table
  shows what the loader does with files of the released size.
- Where an alpha of zero mutes every layer, a loader that does nothing is exact: that is the one file of many rows.
- Every format counts alike however common it is, so the totals are coverage, not a share of files in the wild.

"""


@dataclass
class Results:
    """Verdicts of every reader: by format, and by case if requested."""

    verdicts: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    magnitudes: dict[tuple[str, str], Counter[bool]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, file: LoRAFile, reader: str, verdict: str, kept: bool) -> None:
        """Count one verdict."""
        key = (file.format, reader)
        self.verdicts[key][verdict] += 1
        if file.dora:
            self.magnitudes[key][kept] += 1


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in a block that takes longer: a loader that never ends counts as an error."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {seconds} seconds of processor time")

    # Processor time, so that a busy machine changes no verdict.
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def run(file: LoRAFile, reader: str) -> tuple[str, bool, str]:
    """Return verdict, whether the magnitudes are applied, and the error's first line."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        try:
            with time_limit(SECONDS):
                reading = READERS[reader](file, Path(folder))
        except ImportError:
            raise
        # Any other exception of a loader is a result here.
        except Exception as error:
            return "error", False, f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"[:200]
    return judge(file, reading), keeps_magnitudes(file, reading), ""


def measure(formats: list[str], readers: list[str], only: list[str] | None, listed: bool) -> Results:
    """Run the cases of the formats through the readers, and print those that are not exact if `listed`."""
    results = Results()
    for format in formats:
        for case in (name for name in cases(format) if only is None or name in only):
            file = make(format, case)
            for reader in readers:
                verdict, kept, detail = run(file, reader)
                results.add(file, reader, verdict, kept)
                if listed and verdict != "exact":
                    sys.stdout.write(f"{format}\t{case}\t{reader}\t{verdict}\t{detail}\n")
                    sys.stdout.flush()
    return results


def cell(counts: Counter[str]) -> str:
    """Return `25/25`, or the number of exact files and the outcomes of the others."""
    total = sum(counts.values())
    others = [f"{name} {counts[name]}" for name in VERDICTS[1:] if counts[name]]
    return f"**{total}/{total}**" if not others else f"{counts['exact']}/{total}: {', '.join(others)}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(line) + " |" for line in ([*head], ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def conformance_table(results: Results, formats: list[str], readers: list[str]) -> str:
    """Return one row per format, and the totals."""
    rows = [[f"`{name}`", *(cell(results.verdicts[name, reader]) for reader in readers)] for name in formats]
    totals = [sum((results.verdicts[name, reader] for name in formats), Counter()) for reader in readers]
    return table(["format", *readers], [*rows, ["all", *map(cell, totals)]])


def magnitude_table(results: Results, readers: list[str]) -> str:
    """Return a row for every format with DoRA: in how many files all magnitudes are applied."""
    names = sorted({name for name, _ in results.magnitudes})
    counts = {key: f"{found[True]}/{sum(found.values())}" for key, found in results.magnitudes.items()}
    return table(
        ["format", *readers], [[f"`{name}`", *(counts[name, reader] for reader in readers)] for name in names]
    )


def page(results: Results, formats: list[str], readers: list[str]) -> str:
    """Return the whole page of the documentation."""
    from importlib.metadata import version

    files = sum(len(cases(name)) for name in formats)
    versions = {"diffusers": version("diffusers"), "reference": version("diffsynth")}
    text = PAGE.format(files=files, formats=len(formats), seconds=SECONDS, **versions)
    text += conformance_table(results, formats, readers)
    return f"{text}\nFiles of which every DoRA magnitude is applied:\n\n{magnitude_table(results, readers)}"


def parse_args() -> argparse.Namespace:
    """Return what to run and where to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--reader", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--case", nargs="+", help="run only these cases; without --write")
    parser.add_argument("--list", action="store_true", help="print a line for every file that is not read exactly")
    parser.add_argument("--write", type=Path, help="write the page to this file")
    return parser.parse_args()


def main() -> None:
    """Print or write the table."""
    args = parse_args()
    if args.case and args.write:
        raise SystemExit("--write is for all cases: leave out --case")
    logging.set_verbosity(logging.CRITICAL)
    warnings.simplefilter("ignore")
    results = measure(args.format, args.reader, args.case, args.list)
    if args.write:
        temporary = args.write.with_suffix(".tmp")
        temporary.write_text(page(results, args.format, args.reader))
        temporary.rename(args.write)
    else:
        sys.stdout.write(conformance_table(results, args.format, args.reader))


if __name__ == "__main__":
    main()
