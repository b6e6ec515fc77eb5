"""The tables of docs/gpu.md: only what files of results hold is in them."""

import json

import pytest
import torch

from benchmarks.gpu.machine import describe
from benchmarks.gpu.results import Results, read_results
from benchmarks.gpu.sections import SECTIONS, section_named
from benchmarks.gpu.sizes import RELEASED
from benchmarks.gpu.tables import MARKERS, RESULTS, main, page_part
from tests.fixtures.documentation import ROOT


CARD = {**describe(torch.device("cpu")), "device": "Some Card", "memory_gib": 80.0, "cuda": "13.0"}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "card.json", CARD, "released")


def cells(text, name):
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


def test_the_page_has_what_the_files_hold():
    contents = [read_results(path) for path in sorted(RESULTS.glob("*.json"))]
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert MARKERS[0] + page_part(contents) + MARKERS[1] in page


def test_rows_without_a_result_stay_empty():
    text = page_part([])
    for section in SECTIONS:
        for row in section.rows(RELEASED):
            found = cells(text, row.name)
            assert found
            for line in found:
                assert len(line) == len(section.heads) + len(section.columns)
                assert set(line[len(section.heads) :]) == {""}, (section.name, line)


def test_a_result_fills_its_row_and_names_its_source(results):
    row = section_named("eligen").rows(RELEASED)[0]
    results.put("b", row.name, row.settings, "done", values={"ours_ms": 123.456, "reference_ratio": 1.5}, notes=[])
    text = page_part([read_results(results.path)])
    assert "Measured on Some Card, 80 GiB, CUDA 13.0" in text
    (line,) = [each for each in cells(text, row.name) if "123.5" in each]
    assert "1.5" in line
    assert text.count("123.5") == 1


def test_times_relative_to_no_offload(results):
    rows = section_named("budgets").rows(RELEASED)
    budget = next(row for row in rows if row.name == "budget")
    for row, seconds in ((rows[0], 2.0), (budget, 3.0)):
        results.put("d", row.name, row.settings, "done", values={"seconds": seconds, "peak_gib": None}, notes=[])
    text = page_part([read_results(results.path)])
    assert [line[-1] for line in cells(text, "no offload")] == ["1"]
    assert "1.5" in [line[-1] for line in cells(text, "budget")]


def test_what_could_not_run_says_why(results):
    row = section_named("storage").rows(RELEASED)[1]
    results.put("e", row.name, row.settings, "missing", why="torchao cannot be had.")
    text = page_part([read_results(results.path)])
    assert f"- {row.name}, 0: torchao cannot be had." in text


def test_toys_do_not_come_into_a_page(tmp_path):
    toy = Results(tmp_path / "toy.json", CARD, "toy")
    toy.put("b", "x", {}, "done", values={})
    with pytest.raises(ValueError, match="Results of the toy size"):
        main([str(toy.path), "--results", str(tmp_path / "kept"), "--page", str(tmp_path / "page.md")])
    assert not (tmp_path / "kept").exists()


def test_given_files_are_kept_and_written(results, tmp_path):
    row = section_named("vae").rows(RELEASED)[0]
    results.put("g", row.name, row.settings, "done", values={"ours_ms": 77.25}, notes=[])
    page, kept = tmp_path / "page.md", tmp_path / "kept"
    page.write_text(f"before\n{MARKERS[0]}former tables{MARKERS[1]}\nafter\n")
    main([str(results.path), "--results", str(kept), "--page", str(page)])
    assert json.loads((kept / "card.json").read_text()) == json.loads(results.path.read_text())
    assert "77.25" in page.read_text()
    assert "former tables" not in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
