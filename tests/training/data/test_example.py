"""The data set to try training with."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_flux_ext.flux_shapes import BACKGROUNDS
from diffusers_flux_ext.training.data import (
    Entry,
    ListedBuckets,
    TableSource,
    TrainingData,
    check_data,
    write_example_data,
)
from diffusers_flux_ext.training.data.example import FILE_COLUMNS, SAME_FILES
from diffusers_flux_ext.training.draws import Draws


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example_data(tmp_path_factory.mktemp("example") / "set", 6, seed=3).parent


def test_it_is_a_checked_data_set_with_all_columns(folder: Path) -> None:
    source = TableSource(folder / "metadata.json", file_columns=FILE_COLUMNS)
    needed = (*FILE_COLUMNS[1:], "eligen_entity_prompts", "value_controller_inputs")
    data = TrainingData([Entry(source)], Draws(0), ListedBuckets([(128, 128)]), needed=needed)
    assert check_data(data, decode=True).samples == 6
    row = data.load(2).row
    assert len(row["eligen_entity_prompts"]) == len(row["eligen_entity_masks"]) == 3
    assert 0 <= row["value_controller_inputs"] <= 1
    assert {row[name].size for name in ("controlnet_image", "kontext_images")} == {(128, 128)}


def test_values_are_those_of_the_brightness_where_it_varies_and_of_the_size_elsewhere(folder: Path, tmp_path: Path):
    dark = json.loads(write_example_data(tmp_path / "dark", 3, brightness=(0.4, 0.5)).read_text())
    assert all(0.4 <= row["value_controller_inputs"] <= 0.5 for row in dark)
    rows = json.loads((folder / "metadata.json").read_text())
    assert len({row["value_controller_inputs"] for row in rows}) == len(rows)
    areas = [np.asarray(Image.open(folder / row["eligen_entity_masks"][0]).convert("L")).mean() for row in rows]
    values = [row["value_controller_inputs"] for row in rows]
    assert np.argmax(areas) == np.argmax(values)


def test_by_default_nothing_is_striped(folder: Path) -> None:
    rows = json.loads((folder / "metadata.json").read_text())
    assert not any("striped" in text for row in rows for text in (row["prompt"], *row["eligen_entity_prompts"]))
    corners = {Image.open(folder / row["image"]).convert("RGB").getpixel((0, 0)) for row in rows}
    assert corners <= {*BACKGROUNDS.values()}


def test_csv_and_json_agree(folder: Path) -> None:
    rows = json.loads((folder / "metadata.json").read_text())
    table = TableSource(folder / "metadata.csv", file_columns=("image", "controlnet_image", "kontext_images"))
    for index, row in enumerate(rows):
        assert table.row(index).values["prompt"] == row["prompt"]
        assert table.row(index).values["value_controller_inputs"] == row["value_controller_inputs"]
        assert table.row(index).files["image"] == row["image"]
    assert set(next(csv.reader((folder / "metadata.csv").open()))) < set(rows[0])


def test_columns_of_other_methods_name_the_same_files(folder: Path) -> None:
    for row in json.loads((folder / "metadata.json").read_text()):
        assert all(row[name] == row[column] for name, column in SAME_FILES.items())
        assert row["flux_fill_mask"] == row["flex_inpaint_mask"] == row["eligen_entity_masks"][-1]


def test_masks_and_outlines_lie_over_the_objects(folder: Path) -> None:
    row = json.loads((folder / "metadata.json").read_text())[1]
    masks = np.max([np.asarray(Image.open(folder / path)) for path in row["eligen_entity_masks"]], axis=0) > 127
    outline = np.asarray(Image.open(folder / row["controlnet_image"]).convert("L")) > 127
    assert 0 < outline.sum() < 0.3 * masks.sum()
    assert not (outline & ~masks).any()


def test_a_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    again = write_example_data(tmp_path / "set", 6, seed=3).parent
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    other = write_example_data(tmp_path / "other", 2, seed=4)
    assert json.loads(other.read_text())[0] != json.loads((folder / "metadata.json").read_text())[0]


def test_an_existing_folder_is_left_alone(folder: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        write_example_data(folder)
    with pytest.raises(ValueError, match="`count` must be at least 1"):
        write_example_data(folder.parent / "new", 0)
