"""Whether the tests notice mistakes: seeded mutations of the package, each run against the tests of its folder.

    python -m benchmarks.mutations --count 50                  # appends to mutations.jsonl; run again to continue
    python -m benchmarks.mutations --table                     # prints the table of docs/reliability.md

A mutation changes one place of a copy of this repository: a comparison is flipped, a whole number is one larger, a
`not` is dropped, the first two arguments of a call are swapped, or a statement is removed. `pytest -x -q` then runs
the tests that mirror the file. A failure catches the mutation; tests that end well, or not within `--limit` seconds of
processor time, do not.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.mutants import KINDS, Mutant, mutants


ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "diffusers_flux_ext", ROOT / "tests"
# Public names are a table of strings, and what tests are made of is tested by all others.
LEFT_OUT = ("__init__.py", "testing", "assets")


@dataclass(frozen=True)
class Outcome:
    """What the tests made of a mutation."""

    file: str
    line: int
    kind: str
    change: str
    verdict: str
    by: str
    seconds: int

    def is_of(self, mutant: Mutant) -> bool:
        """Whether this is the outcome of a mutation."""
        return (self.file, self.line, self.kind, self.change) == (mutant.file, mutant.line, mutant.kind, mutant.change)


def sample(count: int, seed: int) -> list[Mutant]:
    """Choose mutations, as many of each kind.

    Args:
        count (`int`): How many; a larger number begins with the same ones.
        seed (`int`): Another seed chooses others.

    Returns:
        `list[Mutant]`
    """
    found: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if not any(name in parts for name in LEFT_OUT):
            for mutant in mutants(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()):
                found[mutant.kind].append(mutant)
    for kind, each in found.items():
        random.Random(f"{seed} {kind}").shuffle(each)
    return [found[KINDS[index % len(KINDS)]][index // len(KINDS)] for index in range(count)]


def mirrored(file: str) -> list[str]:
    """Return the tests that mirror a file of the package, the closest first.

    Args:
        file (`str`): Its path in the repository.

    Returns:
        `list[str]`: Paths for pytest.
    """
    inner = Path(file).relative_to(PACKAGE.name)
    folders = [TESTS / parent for parent in inner.parents if parent != Path(".")]
    own = [folder / f"test_{inner.stem}.py" for folder in (TESTS / inner.parent, *folders)]
    folder = next((folder for folder in folders if any(folder.glob("test_*.py"))), None)
    # A file at the top serves all pipelines.
    paths = dict.fromkeys((*own, folder or TESTS / "pipeline"))
    return [path.relative_to(ROOT).as_posix() for path in paths if path.exists()]


def attempt(mutant: Mutant, copy: Path, limit: int) -> Outcome:
    """Run the tests on a mutation.

    Args:
        mutant (`Mutant`): The mutation.
        copy (`Path`): A copy of the repository, which is restored.
        limit (`int`): Seconds of processor time.

    Returns:
        `Outcome`
    """
    path, start = copy / mutant.file, time.monotonic()
    before = path.read_text(encoding="utf-8")
    path.write_text(mutant.source, encoding="utf-8")
    by, command = "", [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mirrored(mutant.file)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        # A mutation may wait for ever without working.
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=10 * limit, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
        )  # fmt: skip
        verdict = {0: "survived", -signal.SIGXCPU: "no failure in time"}.get(done.returncode, "caught")
        by = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    except subprocess.TimeoutExpired:
        verdict = "no failure in time"
    finally:
        path.write_text(before, encoding="utf-8")
    seconds = round(time.monotonic() - start)
    return Outcome(mutant.file, mutant.line, mutant.kind, mutant.change, verdict, by, seconds)


def read_outcomes(path: Path) -> list[Outcome]:
    """Read what earlier runs found."""
    if not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def run(count: int, seed: int, limit: int, path: Path) -> Iterator[Outcome]:
    """Try the mutations that have no outcome yet, and append theirs.

    Args:
        count (`int`): How many.
        seed (`int`): Seed of the choice.
        limit (`int`): Seconds of processor time for each.
        path (`Path`): The file of outcomes.

    Yields:
        `Outcome`: Each as it comes.
    """
    known = read_outcomes(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", ".*_cache"))
        for mutant in sample(count, seed):
            if not any(outcome.is_of(mutant) for outcome in known):
                outcome = attempt(mutant, copy, limit)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
                yield outcome


def table(outcomes: list[Outcome]) -> str:
    """Return the table of the documentation: a row for each kind, and those that were not caught."""
    verdicts = ("caught", "survived", "no failure in time")
    lines = ["| mutation | " + " | ".join(verdicts) + " |", "|---|" + "---|" * len(verdicts)]
    for kind in (*KINDS, "all"):
        found = [outcome.verdict for outcome in outcomes if kind in (outcome.kind, "all")]
        lines.append(f"| {kind} | " + " | ".join(str(found.count(verdict)) for verdict in verdicts) + " |")
    missed = [outcome for outcome in outcomes if outcome.verdict != "caught"]
    lines += ["", *(f"- `{each.file}:{each.line}` ({each.kind}): {each.verdict}: `{each.change}`" for each in missed)]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit", type=int, default=90, help="seconds of processor time for the tests of each mutation"
    )
    parser.add_argument("--outcomes", type=Path, default=Path("mutations.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of what has been found")
    arguments = parser.parse_args()
    if arguments.table:
        sys.stdout.write(table(read_outcomes(arguments.outcomes)) + "\n")
        return
    for outcome in run(arguments.count, arguments.seed, arguments.limit, arguments.outcomes):
        sys.stdout.write(
            f"{outcome.verdict:20}{outcome.seconds:4} s  {outcome.file}:{outcome.line}  {outcome.change}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
