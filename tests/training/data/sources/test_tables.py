"""Tables of values and paths."""

import csv
import json
import math
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext.training.data import TableSource
from tests.fixtures.training_data import write_rows


def table(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def test_a_csv_table_has_empty_cells_numbers_and_lists(tmp_path: Path) -> None:
    content = (
        'image,prompt,score,count,note,eligen_entity_prompts\na.png,7,0.5,3,,"[""x"", ""y""]"\nb.png,"a, b",,,n,\n'
    )
    source = TableSource(table(tmp_path, "m.csv", "\ufeff" + content))
    first, second = source.row(0), source.row(1)
    assert first.files == {"image": "a.png"}
    assert first.values == {
        "prompt": "7", "score": 0.5, "count": 3, "note": None, "eligen_entity_prompts": ["x", "y"]
    }  # fmt: skip
    assert second.values == {
        "prompt": "a, b", "score": None, "count": None, "note": "n", "eligen_entity_prompts": None
    }  # fmt: skip
    assert second.name == "m.csv, line 3"


def test_no_empty_cell_is_nan(tmp_path: Path) -> None:
    source = TableSource(table(tmp_path, "m.csv", "image,a,b\nx.png,,1\ny.png,,\nz.png,nan,2\n"))
    values = [value for index in range(3) for value in source.row(index).values.values()]
    assert not any(isinstance(value, float) and math.isnan(value) for value in values)
    assert values == [None, 1, None, None, "nan", 2]


def test_json_and_jsonl_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "prompt": "x", "masks": ["m", "n"]}, {"image": "b.png", "prompt": None}]
    whole = table(tmp_path, "m.json", json.dumps(rows))
    lines = table(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    one, other = (TableSource(path, file_columns=("image", "masks")) for path in (whole, lines))
    assert [one.row(i).files for i in range(2)] == [other.row(i).files for i in range(2)]
    assert one.row(0).references("masks") == ("m", "n")
    assert one.row(1).values == other.row(1).values == {"prompt": None}


BROKEN = {
    "more cells": ("m.csv", "image,prompt\na.png,a cat, sleeping\n", "line 2: there are more cells than columns"),
    "open quote": ("m.csv", 'image,prompt\na.png,"a cat\n', "after line 1: unexpected end of data"),
    "no rows": ("m.csv", "image,prompt\n", "has no rows"),
    "object": ("m.json", '{"image": "a.png"}', "must hold a list of objects, got dict"),
    "entry": ("m.json", '["a.png"]', "entry 0: expected an object of columns"),
    "syntax": ("m.jsonl", '{"image": "a.png"}\n{"image"', "m.jsonl, line 2"),
    "nan": ("m.json", '[{"image": "a.png", "score": NaN}]', "NaN is not a JSON value"),
    "number as path": ("m.json", '[{"image": 3}]', "`image` must be a path or a list of paths, got 3"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_tables_are_refused_by_their_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableSource(table(tmp_path, name, content))


def test_a_table_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("image,prompt\na.png,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not text in UTF-8"):
        TableSource(tmp_path / "m.csv")


def test_missing_tables_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.csv"):
        TableSource(tmp_path / "nothing.csv")
    path = table(tmp_path, "m.csv", "image\na.png\n")
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        TableSource(path, tmp_path / "elsewhere")


def test_a_source_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    source = TableSource(write_rows(tmp_path / "set"))
    again = pickle.loads(pickle.dumps(source))
    assert again.row(1) == source.row(1)
    assert again.open("1.png") == source.open("1.png")
    with pytest.raises(IndexError, match="has 4 rows, numbered from 0, got 4"):
        source.row(4)


NAMES = st.text(min_size=1, alphabet=st.characters(blacklist_categories=("Cs", "Cc")))
TEXTS = st.text(alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=5))
def test_any_text_survives_a_csv_table(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "m.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *((f"{name}.png", text) for name, text in rows)])
    source = TableSource(path)
    assert [source.row(i).values["prompt"] for i in range(len(rows))] == [text or None for _, text in rows]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_parity_of_rows(tmp_path: Path, suffix: str) -> None:
    reference = import_reference("diffsynth.core.data.unified_dataset")
    rows = [{"image": f"{i}.png", "prompt": f"a cat, {i}", "value": i + 0.5, "mode": i} for i in range(3)]
    path = tmp_path / f"m.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    theirs = reference.UnifiedDataset(str(tmp_path), str(path)).data
    source = TableSource(path)
    ours = [{**source.row(i).values, **source.row(i).files} for i in range(3)]
    assert ours == theirs
