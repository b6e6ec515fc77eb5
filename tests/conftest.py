"""Settings of all tests."""

import gc
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
import torch

from tests.fixtures.sampling import SHARE, share_of


BIT_COMPARISONS = frozenset({"array_equal", "equal", "same_bits"})
METHODS = Path(__file__).parent / "methods"
LONG = Path(__file__).with_name("long.txt")
LARGE_FAMILY, LEAST_CASES = 10, 3


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    # Tiny tensors gain nothing from threads, and on a busy machine threads that wait for each other cost minutes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_finish() -> None:
    """Collect garbage less often and without what the imports made, which would take a tenth of a run."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_configure(config: pytest.Config) -> None:
    """Register a marker for each method, so that `-m eligen` runs the tests of `methods/eligen`."""
    if hasattr(config.option, "loadscopereorder"):
        # Files of few tests, which are the longest, would come last, and one process would wait for them.
        config.option.loadscopereorder = False
    for folder in sorted(METHODS.iterdir()):
        if any(folder.glob("test_*.py")):
            config.addinivalue_line("markers", f"{folder.name}: tests of the method in tests/methods/{folder.name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by their method, and those that compare bits, which other processors' kernels may round otherwise."""
    _mark_long(items)
    known: dict[CodeType, bool] = {}
    for item in items:
        if METHODS in item.path.parents[1:]:
            item.add_marker(item.path.relative_to(METHODS).parts[0])
        function = getattr(item, "function", None)
        if isinstance(function, FunctionType) and _compares_bits(function, known):
            item.add_marker(pytest.mark.bits)
    _sample_families(config, items)
    if SHARE > 1:
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="takes half a minute or more: .ci/full runs it"))
    items.sort(key=lambda item: item.get_closest_marker("training") is None)


def _mark_long(items: list[pytest.Item]) -> None:
    """Mark the tests that `long.txt` names, which take too long for an answer while one works."""
    listed = set(LONG.read_text(encoding="utf-8").split())
    for item in items:
        if _family(item) in listed and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.long)


def _sample_families(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one of `FLUX_EXT_SHARE` cases of each large family of slow tests, always the same ones."""
    families: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow"):
            families[_family(item)].append(item)
    left_out: set[int] = set()
    for family in families.values():
        if len(family) > LARGE_FAMILY:
            family.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
            left_out |= set(map(id, family[share_of(len(family), LEAST_CASES) :]))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]


def _family(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _compares_bits(function: FunctionType, known: dict[CodeType, bool]) -> bool:
    """Whether a function of the tests, or one of those they share that it calls, compares tensors for equality."""
    if function.__code__ not in known:
        known[function.__code__] = False
        names = _names(function.__code__)
        called = [function.__globals__.get(name) for name in names]
        known[function.__code__] = bool(names & BIT_COMPARISONS) or any(
            _compares_bits(each, known) for each in called if _is_of_the_tests(each)
        )
    return known[function.__code__]


def _is_of_the_tests(value: Any) -> bool:
    return isinstance(value, FunctionType) and value.__module__.partition(".")[0] in ("benchmarks", "tests")


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
