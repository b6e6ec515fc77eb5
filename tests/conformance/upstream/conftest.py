"""Compares the outcome of every upstream test with the stock class's in the same run."""

import sys
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import diffusers
import pytest

from .checkout import STOCK
from .differences import known_difference
from .hub import save_text_encoders, served_locally


OUTCOMES: dict[tuple[str, str, str, str], str] = {}


@pytest.fixture(scope="session", autouse=True)
def local_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("hub")
    save_text_encoders(folder)
    with served_locally(folder):
        yield


@pytest.fixture(scope="class", autouse=True)
def our_classes(request: pytest.FixtureRequest, local_hub: None) -> Iterator[None]:
    """Puts our classes where the upstream module has stock ones."""
    tests = request.cls
    with pytest.MonkeyPatch.context() as patch:
        for name, value in getattr(tests, "replaces", {}).items():
            if hasattr(sys.modules[tests.upstream_module], name):
                patch.setattr(sys.modules[tests.upstream_module], name, value)
        pipeline_class = getattr(tests, "pipeline_class", None)
        if isinstance(pipeline_class, type):
            # Some tests read the source of the class that diffusers has under its name.
            patch.setattr(diffusers.pipelines, pipeline_class.__name__, pipeline_class, raising=False)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    tests = getattr(item, "cls", None)
    if not hasattr(tests, "upstream_module") or (report.when != "call" and report.passed):
        return report
    key = (tests.suite, tests.__bases__[0].__name__, tests.variant, item.name)
    OUTCOMES[key] = report.outcome
    stock = OUTCOMES.get((*key[:2], STOCK, item.name))
    reason = known_difference(tests.suite, tests.variant, item.name)
    if tests.variant == STOCK or stock == "failed":
        if report.failed:
            _expect(report, "the stock class fails, too")
    elif report.passed:
        if reason:
            report.outcome, report.longrepr = "failed", f"passes, but differences.py says: {reason}"
    elif reason:
        OUTCOMES[key] = "differs"
        _expect(report, reason)
    elif report.skipped and stock == "passed":
        report.outcome, report.longrepr = "failed", f"skipped, where the stock class passes: {report.longrepr}"
        OUTCOMES[key] = "failed"
    return report


def _expect(report: Any, reason: str) -> None:
    report.outcome, report.wasxfail = "skipped", reason


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not OUTCOMES:
        return
    counts: dict[tuple[str, str], Counter[str]] = {}
    for (suite, _, variant, _), outcome in OUTCOMES.items():
        counts.setdefault((suite, variant), Counter())[outcome] += 1
    terminalreporter.section("upstream's own tests")
    columns = ("passed", "skipped", "failed", "differs")
    terminalreporter.write_line("| suite | classes | passed | skipped | failed | differ by design |")
    terminalreporter.write_line("|---|---|---|---|---|---|")
    for (suite, variant), count in counts.items():
        cells = " | ".join(str(count[column]) for column in columns)
        terminalreporter.write_line(f"| {suite} | {variant} | {cells} |")
