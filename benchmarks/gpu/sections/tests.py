"""The tests that need an accelerator."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit import Kit, Missing
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sizes import Size


ROOT = Path(__file__).parents[3]
MARK = "mark.gpu"
SECONDS = 170


def gpu_test_files(root: Path = ROOT) -> list[Path]:
    """Return the files of tests that are marked `gpu`, from the repository's root."""
    return sorted(
        path.relative_to(root) for path in (root / "tests").rglob("test_*.py") if MARK in path.read_text("utf-8")
    )


def run_tests(path: Path, root: Path = ROOT) -> dict[str, Any]:
    """Run the marked tests of a file in a process of its own.

    Args:
        path (`Path`): The file, from the root.
        root (`Path`): The repository.

    Returns:
        `dict[str, Any]`: numbers of tests, their seconds, and `"notes"` on those that failed or were skipped.

    Raises:
        Missing: if pytest is not installed.
        RuntimeError: if no test ran to its end.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(path), "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        command += ["--strict-markers", f"--junitxml={report}"]
        # Plugins take seconds to load, and the marked tests need none.
        alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        try:
            done = subprocess.run(command, cwd=root, env=alone, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{path} took longer than {SECONDS} s.") from error
        if "No module named pytest" in done.stderr:
            raise Missing("pytest is not installed.")
        if not report.exists():
            raise RuntimeError(f"pytest wrote no report: {(done.stdout + done.stderr)[-300:]}")
        return _counts(ElementTree.parse(report).getroot())


def _counts(report: ElementTree.Element) -> dict[str, Any]:
    cases = list(report.iter("testcase"))
    found: dict[str, list[str]] = {"failure": [], "error": [], "skipped": []}
    for case in cases:
        for kind, notes in found.items():
            notes += [
                f"{case.get('name')}: {kind}: {(each.get('message') or '')[:300]}" for each in case.findall(kind)
            ]
    bad = len(found["failure"]) + len(found["error"])
    return {
        "passed": len(cases) - bad - len(found["skipped"]),
        "failed": bad,
        "skipped": len(found["skipped"]),
        "seconds": sum(float(case.get("time") or 0) for case in cases),
        "notes": [*found["failure"], *found["error"], *sorted(set(found["skipped"]))[:3]],
    }


def _rows(size: Size) -> Sequence[Row]:
    def row(path: Path) -> Row:
        return Row(path.as_posix(), {}, lambda kit: _measure(kit, path))

    return [row(path) for path in gpu_test_files()]


def _measure(kit: Kit, path: Path) -> dict[str, Any]:
    kit.forget()
    return run_tests(path)


TESTS = Section(
    "a",
    "tests",
    "Tests",
    "The tests that are marked `gpu`, each file in a process of its own.",
    3,
    {"passed": "passed", "failed": "failed", "skipped": "skipped", "seconds": "s"},
    _rows,
)
