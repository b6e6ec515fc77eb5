"""Checks of all samples before the start."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_flux_ext.training.data import (
    BadSamples,
    Captions,
    Entry,
    FreeBuckets,
    ListedBuckets,
    TableSource,
    TrainingData,
    Transform,
    check_data,
)
from diffusers_flux_ext.training.data.dataset import HEADER_BYTES
from diffusers_flux_ext.training.draws import Draws
from tests.fixtures.training_data import FILE_COLUMNS, NEEDED, make_data, noise, write_rows


def spoiled(folder: Path, count: int = 24) -> TableSource:
    """A table of which every other row has a problem."""
    path = write_rows(folder, count)
    rows = json.loads(path.read_text())
    for index, row in enumerate(rows):
        if index % 2:
            row["image"] = f"missing{index}.png"
    path.write_text(json.dumps(rows))
    return TableSource(path, file_columns=FILE_COLUMNS)


def unchecked(source: TableSource, **options: object) -> TrainingData:
    given = {"sizes": ListedBuckets([(32, 48)]), "needed": NEEDED, **options}
    return TrainingData([Entry(source)], Draws(0), **given)  # type: ignore[arg-type]


def test_a_report_counts_sizes_repeats_and_modes(tmp_path: Path) -> None:
    source = TableSource(write_rows(tmp_path / "set", 3), file_columns=FILE_COLUMNS)
    data = TrainingData([Entry(source, repeats=2)], Draws(0), FreeBuckets((32, 48), 16, upscale=True), needed=NEEDED)
    report = check_data(data)
    assert (report.rows, report.samples, len(data)) == (3, 12, 12)
    assert sum(report.sizes.values()) == 12
    assert report.modes == {"RGB": 3}
    # 48 x 48 pixels out of 40 x 56.
    assert report.enlarged == 6
    assert "3 rows, 12 samples in an epoch, 0 rows left out" in str(report)


def test_the_first_ten_problems_are_listed_with_their_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 of 24 samples cannot be used") as caught:
        check_data(unchecked(spoiled(tmp_path / "set")))
    listed = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    assert len(listed) == 10
    assert "metadata.json, entry 1: There is no file `missing1.png`" in listed[0]
    assert "and 2 more" in str(caught.value)


def test_bad_samples_are_skipped_up_to_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = unchecked(spoiled(tmp_path / "set"))
    logging.getLogger("diffusers").propagate = True
    report = check_data(data, BadSamples("skip", 0.5))
    assert (report.samples, len(report.skipped)) == (12, 12)
    assert {item.row % 2 for item in data.items} == {0}
    assert "They are left out" in caplog.text
    with pytest.raises(ValueError, match="more than the share of 0.4"):
        check_data(data, BadSamples("skip", 0.4))


def break_file(folder: Path) -> None:
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(content[: len(content) // 2])


def test_truncated_files_are_found_by_decoding(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set")
    break_file(tmp_path / "set")
    data = unchecked(TableSource(path, file_columns=FILE_COLUMNS))
    check_data(data)
    with pytest.raises(ValueError, match=r"entry 1: `1\.png` is truncated"):
        check_data(data, decode=True)


PROBLEMS = {
    "no caption": ({"prompt": None}, "has no caption"),
    "trigger": ({"eligen_entity_prompts": ["[trigger]"]}, r"has \[trigger\], but the source has no `trigger`"),
    "no image": ({"image": None}, "has 0 files in `image`; expected 1"),
    "two images": ({"image": ["0.png", "1.png"]}, "has 2 files in `image`"),
    "proportions": ({"eligen_entity_masks": ["0r.png"]}, "They must have the same proportions"),
    "outside": ({"kontext_images": "../a.png"}, "leads out of the folder"),
    "not an image": ({"image": "metadata.json"}, "is not an image of the formats"),
}


@pytest.mark.parametrize(("changed", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_problems_of_a_row_are_named(tmp_path: Path, changed: dict, message: str) -> None:
    path = write_rows(tmp_path / "set", 1, **changed)
    with pytest.raises(ValueError, match=f"entry 0.*{message}"):
        check_data(unchecked(TableSource(path, file_columns=FILE_COLUMNS)))


def test_a_trigger_fills_all_texts(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set", 1, prompt="[trigger]", eligen_entity_prompts=["the [trigger]"])
    data = make_data(path, entry={"trigger": "sks", "prefix": "photo of "})
    loaded = data.load(0)
    assert loaded.row["eligen_entity_prompts"] == ["the sks"]
    assert loaded.texts == ["photo of sks"]


def test_flips_are_refused_where_texts_references_or_sources_forbid_them(tmp_path: Path) -> None:
    flip = Transform(flip=0.5, flip_columns=("kontext_images",))
    path = write_rows(tmp_path / "set", 1, eligen_entity_prompts=["the left ear"])
    with pytest.raises(ValueError, match="say left or right.*the left ear"):
        make_data(path, transform=flip)
    with pytest.raises(ValueError, match="metadata.json may not be mirrored"):
        make_data(path, transform=flip, entry={"allow_flip": False})
    with pytest.raises(ValueError, match="kontext_images"):
        make_data(path, transform=Transform(flip=0.5))


def test_several_sources_are_numbered_one_after_another(tmp_path: Path) -> None:
    one = TableSource(write_rows(tmp_path / "one", 2), file_columns=FILE_COLUMNS)
    other = TableSource(write_rows(tmp_path / "other", 1), file_columns=FILE_COLUMNS)
    noise(9, 64, 64).save(tmp_path / "other" / "0.png")
    entries = [Entry(one, weight=0.5), Entry(other, 2, sizes=ListedBuckets([(64, 64)]), prefix="x ", preserved=True)]
    data = TrainingData(entries, Draws(0), ListedBuckets([(32, 32)]), captions=Captions(columns=("prompt",)))
    check_data(data)
    loaded = [data.load(index) for index in range(len(data))]
    assert [each.image.size for each in loaded] == [(32, 32), (32, 32), (64, 64), (64, 64)]
    assert [each.weight for each in loaded] == [0.5, 0.5, 1.0, 1.0]
    assert [each.preserved for each in loaded] == [False, False, True, True]
    assert loaded[2].texts == ["x a cat"]


@pytest.mark.parametrize("options", [{"on_bad_sample": "ask"}, {"limit": 2.0}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).strip("`")):
        BadSamples(**options)


def test_large_jpeg_files_are_not_read_in_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "set", 1)
    rows = json.loads(path.read_text())
    # Noise, which does not compress; turned by its EXIF data.
    pixels = np.random.RandomState(0).randint(0, 256, (560, 400, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "set" / "large.jpg", quality=100, exif=exif)
    assert (tmp_path / "set" / "large.jpg").stat().st_size > 1.5 * HEADER_BYTES
    rows[0].update(image="large.jpg", eligen_entity_masks=["0m.png"])
    path.write_text(json.dumps(rows))
    data = unchecked(TableSource(path, file_columns=FILE_COLUMNS))
    source, read = data.entries[0].source, []
    opened = type(source).open

    def count(self: TableSource, reference: str, limit: int | None = None) -> bytes:
        content = opened(self, reference, limit)
        read.append((reference, len(content)))
        return content

    monkeypatch.setattr(TableSource, "open", count)
    assert check_data(data).samples == 1
    assert max(length for name, length in read if name == "large.jpg") == HEADER_BYTES
    header = data.header(0, data.row(0, 0), "image", "large.jpg")
    assert (header.height, header.width) == (400, 560)


def test_conditions_may_opt_out_of_flips(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set", 1)
    with pytest.raises(ValueError, match="InfiniteYouIdentity may not be mirrored"):
        make_data(path, transform=Transform(flip=0.5), opted_out=("InfiniteYouIdentity",))


def test_a_column_that_no_row_has_is_named(tmp_path: Path) -> None:
    source = TableSource(write_rows(tmp_path / "set", 1), file_columns=FILE_COLUMNS)
    with pytest.raises(
        ValueError, match="No row has the column 'eligen_entity_prompt'; did you mean 'eligen_entity_prompts'"
    ):
        check_data(unchecked(source, needed=("eligen_entity_prompt",)))
    with pytest.raises(ValueError, match="No row has the column 'text'"):
        check_data(unchecked(source, captions=Captions(columns=("text",))))


def test_conditions_get_the_columns_that_were_declared_and_none_for_empty_cells(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set", 2, note="x")
    rows = json.loads(path.read_text())
    rows[1]["kontext_images"] = None
    path.write_text(json.dumps(rows))
    data = make_data(path, needed=("kontext_images",))
    assert set(data.load(0).row) == {"kontext_images"}
    assert data.load(1).row == {"kontext_images": None}
