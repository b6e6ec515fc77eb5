"""The mistakes that `benchmarks/mutations.py` makes, and the tests it runs on them."""

import ast

import pytest

from benchmarks import mutations
from benchmarks.mutants import KINDS, mutants
from benchmarks.mutations import Outcome, mirrored, sample, table


SOURCE = '''"""With é before: columns are bytes."""


def name(é: int, other: list[int] = [2]) -> bool:
    if not é < 3:
        print("é", other, sep="")
    (é) == 1
    é += 1
    return name(other, é) and isinstance(é, int)
'''


def test_each_kind_of_mistake():
    changes = [(each.line, each.kind, each.change) for each in mutants(SOURCE, "a.py")]
    assert sorted(changes) == sorted(
        [
            (4, "off by one", "2 -> 3"),
            (5, "`not` dropped", "not é < 3 -> bool(é < 3)"),
            (5, "comparison flipped", "é < 3 -> é <= 3"),
            (5, "off by one", "3 -> 4"),
            (6, "arguments swapped", 'print("é", other, sep="") -> print(other, "é", sep="")'),
            (6, "statement removed", 'print("é", other, sep="") -> pass'),
            (7, "off by one", "1 -> 2"),
            (8, "off by one", "1 -> 2"),
            (8, "statement removed", "é += 1 -> pass"),
            (9, "arguments swapped", "name(other, é) -> name(é, other)"),
        ]
    )


def test_a_mistake_is_one_place_of_a_file_that_still_parses():
    for mutant in mutants(SOURCE, "a.py"):
        ast.parse(mutant.source)
        pairs = zip(SOURCE.splitlines(), mutant.source.splitlines(), strict=True)
        assert [index for index, (one, other) in enumerate(pairs, 1) if one != other] == [mutant.line]


def test_the_seed_decides_and_a_larger_number_begins_with_the_same(monkeypatch):
    # The whole package takes seconds.
    monkeypatch.setattr(mutations, "PACKAGE", mutations.PACKAGE / "inputs")
    first = sample(10, 0)
    assert [mutant.kind for mutant in first] == [*KINDS, *KINDS]
    assert sample(15, 0)[:10] == first
    assert sample(10, 1) != first


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("inputs/numbers.py", ["tests/inputs/test_numbers.py", "tests/inputs"]),
        ("methods/fill/condition.py", ["tests/methods/fill"]),
        ("lora/writing/write.py", ["tests/lora"]),
        ("denoise.py", ["tests/test_denoise.py", "tests/pipeline"]),
    ],
)
def test_the_tests_of_a_file(file, tests):
    assert mirrored(f"diffusers_flux_ext/{file}") == tests


def test_the_table_counts_and_names_what_was_missed():
    found = [
        Outcome("a.py", 3, KINDS[0], "a < b -> a <= b", "survived", "", 7),
        Outcome("a.py", 4, KINDS[1], "1 -> 2", "caught", "FAILED x", 7),
    ]
    lines = table(found).splitlines()
    assert "| comparison flipped | 0 | 1 | 0 |" in lines
    assert "| all | 1 | 1 | 0 |" in lines
    assert lines[-1] == "- `a.py:3` (comparison flipped): survived: `a < b -> a <= b`"
