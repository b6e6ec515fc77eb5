"""Which folder of the repository may import which, and that lists of tests name tests."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# Folders, and what nothing in them imports.
FORBIDDEN = {
    "diffusers_flux_ext": {"benchmarks", "tests"},
    "examples": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
}


def imported(source):
    """The top-level modules that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_imports_only_what_it_may(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {path: FORBIDDEN[folder] & set(imported(path.read_text(encoding="utf-8"))) for path in files}
    assert {path.relative_to(ROOT).as_posix(): names for path, names in found.items() if names} == {}


def test_imports_are_found_wherever_they_are():
    source = "import tests.a as b, os\nfrom . import support\ndef f():\n    from tests.fixtures import c\n"
    assert sorted(imported(source)) == ["os", "tests", "tests"]


def functions_of(source):
    """The tests of a source as pytest names them, without the file."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def test_long_tests_exist():
    gone = []
    for name in (ROOT / "tests" / "long.txt").read_text().split():
        file, _, function = name.partition("::")
        path = ROOT / file
        if not path.is_file() or function not in functions_of(path.read_text()):
            gone.append(name)
    assert not gone, "correct or remove the lines in tests/long.txt"
