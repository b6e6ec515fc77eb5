"""Every section of the figures runs on a CPU at toy size."""

import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.results import read_results
from benchmarks.gpu.sections import SECTIONS, section_named
from benchmarks.gpu.sections.tests import gpu_test_files, run_tests
from benchmarks.gpu.sizes import RELEASED, TOY


MEASURING = [section.name for section in SECTIONS if section.name != "tests"]
UNSHOWN = {"step_ms", "reference_gib", "diffusers again_s"}
# What a CPU lacks, beside packages that may be missing.
NOT_HERE = ("cache-dit", "The reference did not run", "cannot be had")
TESTS = """
import pytest

@pytest.mark.{mark}
def test_passes():
    pass

@pytest.mark.{mark}
def test_fails():
    raise ValueError("too warm")

@pytest.mark.{mark}
@pytest.mark.skipif(True, reason="no card")
def test_is_skipped():
    pass

def test_is_not_chosen():
    pass
""".format(mark="gpu")


@pytest.mark.parametrize("name", MEASURING)
def test_a_section_measures_all_its_rows(name, tmp_path, capsys):
    out, section = tmp_path / "results.json", section_named(name)
    assert main(["--size", "toy", "--device", "cpu", "--section", name, "--out", str(out)]) == 0
    rows = read_results(out)["rows"]
    assert [row["name"] for row in rows] == [row.name for row in section.rows(TOY)]
    assert any(row["status"] == "done" for row in rows)
    for row in rows:
        if row["status"] == "done":
            assert set(row["values"]) & set(section.columns)
            # A value that no column shows may be a mistake in a name.
            assert set(row["values"]) - set(section.columns) <= UNSHOWN
        else:
            assert row["status"] == "missing"
            assert row["why"].startswith(NOT_HERE) or "cannot be had" in row["why"]
    assert "Nothing is left." in capsys.readouterr().out


def test_entities_by_plans_equal_a_dense_mask_and_the_reference():
    torch.manual_seed(0)
    row = section_named("eligen").rows(TOY)[0]
    values = row.measure(Kit(torch.device("cpu"), TOY))
    differences = {name: value for name, value in values.items() if name.endswith("_difference")}
    assert "dense mask_difference" in differences
    assert max(differences.values()) < 1e-5


def test_all_files_with_marked_tests_are_found():
    found = {path.as_posix() for path in gpu_test_files()}
    assert found >= {"tests/offload/disk/test_disk_streaming_pipelines.py", "tests/test_gpu.py"}
    assert not any(path.startswith("tests/benchmarks") for path in found)


def test_marked_tests_are_counted(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    found = run_tests("test_some.py", tmp_path)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert any("too warm" in note for note in found["notes"])
    assert any("no card" in note for note in found["notes"])


def test_a_run_without_a_report_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "true")
    with pytest.raises(RuntimeError, match="pytest wrote no report"):
        run_tests("test_some.py", tmp_path)


@pytest.mark.parametrize("size", [RELEASED, TOY], ids=lambda size: size.name)
def test_rows_differ_by_name_or_settings(size):
    for section in SECTIONS:
        keys = [(row.name, str(sorted(row.settings.items()))) for row in section.rows(size)]
        assert keys
        assert len(set(keys)) == len(keys), section.name


def test_sections_come_in_their_order():
    assert "".join(section.letter for section in SECTIONS) == "abcdefghi"
    assert section_named("d") is section_named("budgets")
    with pytest.raises(ValueError, match=r"no section 'z'; expected a or tests, .* i or methods"):
        section_named("z")
