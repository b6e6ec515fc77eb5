"""The modules of diffusers' tests, and test classes made of theirs."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest


SOURCE = os.environ.get("DIFFUSERS_SOURCE", "")
# Not `tests`: that is this repository's package. The modules of the checkout only use relative imports.
ALIAS = "diffusers_checkout_tests"
STOCK = "stock"


def skip_without_checkout() -> None:
    """Skip the calling module unless `DIFFUSERS_SOURCE` names a checkout of diffusers."""
    if not SOURCE or not Path(SOURCE, "tests", "pipelines", "flux", "test_pipeline_flux.py").is_file():
        pytest.skip(
            f"diffusers' tests are not in its wheel: set DIFFUSERS_SOURCE to a checkout of diffusers v"
            f"{diffusers.__version__} (now {SOURCE!r}) to run them",
            allow_module_level=True,
        )


def upstream(name: str) -> ModuleType:
    """A module below the checkout's `tests`."""
    if ALIAS not in sys.modules:
        package = ModuleType(ALIAS)
        package.__path__ = [str(Path(SOURCE, "tests"))]
        sys.modules[ALIAS] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return importlib.import_module(f"{ALIAS}.{name}")


def test_classes(module: ModuleType, base: type) -> Iterator[tuple[str, type]]:
    """Names and classes of a module that hold tests of tiny models, without those that load released checkpoints."""
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and issubclass(value, base):
            released = any(word in name for word in ("Integration", "Slow", "Nightly"))
            if not released and any(each.startswith("test_") for each in dir(value)):
                yield name, value


test_classes.__test__ = False  # type: ignore[attr-defined]


def add_tests(
    namespace: dict[str, Any], suite: str, test_class: type, variants: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add a subclass of an upstream test class for each variant; the one called `STOCK` comes first.

    Args:
        namespace (`dict`): The globals of the test module.
        suite (`str`): The name under which the table counts the tests.
        test_class (`type`): The upstream class.
        variants: Attributes of the subclass by the name of the variant. The attribute `replaces` maps names in the
            upstream module to what stands there while the tests run.
    """
    for variant, attributes in variants.items():
        name = f"Test_{test_class.__name__}_{variant}"
        body = {"__module__": namespace["__name__"], "suite": suite, "variant": variant, "replaces": {}, **attributes}
        namespace[name] = type(name, (test_class,), {**body, "upstream_module": test_class.__module__})
