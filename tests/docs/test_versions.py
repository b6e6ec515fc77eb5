"""One lowest version of Python: in the package, the linters, the README and the libraries that ask for it."""

import tomllib
from importlib.metadata import metadata

import pytest

from tests.fixtures.documentation import ROOT


LOWEST = "3.11"


def test_the_package_the_linters_and_the_readme_name_one_version():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["requires-python"] == f">={LOWEST}"
    assert settings["tool"]["ruff"]["target-version"] == f"py{LOWEST.replace('.', '')}"
    assert settings["tool"]["mypy"]["python_version"] == LOWEST
    assert f"Python {LOWEST} or newer" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_no_library_asks_for_more(library):
    asked = metadata(library)["Requires-Python"].removeprefix(">=").split(".")[:2]
    assert tuple(map(int, asked)) <= tuple(map(int, LOWEST.split(".")))
