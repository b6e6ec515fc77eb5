"""Folders, archives, parquet files and saved data sets."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest

from diffusers_flux_ext.training.data import FolderSource, ParquetSource, SavedDatasetSource, WebDatasetSource
from tests.fixtures.training_data import as_bytes, noise


PICTURES = [as_bytes(noise(seed, 16, 16)) for seed in range(3)]


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        root = tmp_path / "set"
        (root / "deep").mkdir(parents=True)
        (root / "outlines" / "deep").mkdir(parents=True)
        (root / ".hidden").mkdir()
        for name, content in zip(("b.png", "deep/a.1.PNG", "c.jpg"), PICTURES):
            (root / name).write_bytes(content)
        (root / "outlines" / "deep" / "a.1.jpg").write_bytes(PICTURES[0])
        (root / ".hidden" / "x.png").write_bytes(PICTURES[0])
        (root / "b.txt").write_text("a cat \n")
        (root / "deep" / "a.1.caption").write_text("\ufeffa dog", encoding="utf-8")
        (root / "c.json").write_text(json.dumps({"caption": ["one", "two"], "score": 3}))
        return root

    def test_captions_and_columns_come_from_files_beside(self, folder: Path) -> None:
        source = FolderSource(folder, beside={"controlnet_image": "outlines"})
        assert [source.row(i).files["image"] for i in range(len(source))] == ["b.png", "c.jpg", "deep/a.1.PNG"]
        assert [source.row(i).values for i in range(3)] == [
            {"prompt": "a cat"}, {"prompt": ["one", "two"], "score": 3}, {"prompt": "a dog"}
        ]  # fmt: skip
        assert source.row(2).files["controlnet_image"] == "outlines/deep/a.1.jpg"
        assert source.row(0).references("controlnet_image") == ()
        assert source.open("b.png") == PICTURES[0]

    def test_broken_json_is_named(self, folder: Path) -> None:
        (folder / "c.json").write_text("[1]")
        with pytest.raises(ValueError, match=r"c\.json must hold an object"):
            FolderSource(folder).row(1)

    def test_captions_that_are_links_out_of_the_folder_are_refused(self, folder: Path) -> None:
        (folder.parent / "secret.txt").write_text("secret")
        (folder / "b.txt").unlink()
        (folder / "b.txt").symlink_to("../secret.txt")
        source = FolderSource(folder)
        with pytest.raises(ValueError, match="leads out of the folder"):
            source.row(0)
        assert FolderSource(folder, allow_outside=True).row(0).values == {"prompt": "secret"}

    def test_empty_and_missing_folders_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has no images"):
            FolderSource(tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            FolderSource(tmp_path / "nowhere")


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class TestWebDataset:
    MEMBERS = {
        "part/0.png": PICTURES[0], "part/0.txt": b"a cat", "part/0.mask.png": PICTURES[1],
        "part/0.json": b'{"score": 2}', "part/1.jpg": PICTURES[2], "part/1.json": b'{"caption": "a dog"}',
        "part/notes.txt": b"no image",
    }  # fmt: skip

    def test_members_of_one_name_are_a_sample(self, tmp_path: Path) -> None:
        shards = [write_tar(tmp_path / "a.tar", self.MEMBERS), write_tar(tmp_path / "b.tar", self.MEMBERS)]
        source = pickle.loads(pickle.dumps(WebDatasetSource(shards)))
        assert len(source) == 4
        row = source.row(0)
        assert row.values == {"prompt": "a cat", "score": 2}
        assert [source.open(row.references(name)[0]) for name in ("image", "mask")] == PICTURES[:2]
        assert source.row(3).values == {"prompt": "a dog"}
        assert source.row(3).name == "b.tar: part/1"
        with pytest.raises(FileNotFoundError, match="has no member"):
            source.open("../secret")

    @pytest.mark.parametrize("name", ["0.pkl", "0.latents.pth", "0.npy", "0.PT"])
    def test_pickles_are_refused(self, tmp_path: Path, name: str) -> None:
        path = write_tar(tmp_path / "a.tar", {**self.MEMBERS, name: b"\x80\x04."})
        with pytest.raises(ValueError, match=f"{name}` may be a pickle"):
            WebDatasetSource(path)

    def test_links_and_compressed_files_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not an uncompressed tar file"):
            WebDatasetSource(write_tar(tmp_path / "a.tar.gz", self.MEMBERS, "w:gz"))
        with tarfile.open(tmp_path / "b.tar", "w") as archive:
            link = tarfile.TarInfo("0.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        with pytest.raises(ValueError, match="`0.png` is not a regular file"):
            WebDatasetSource(tmp_path / "b.tar")

    def test_a_file_without_images_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no samples with an image"):
            WebDatasetSource(write_tar(tmp_path / "a.tar", {"0.txt": b"a"}))


class TestParquet:
    def test_images_are_bytes_objects_or_paths(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="parquet files are read with pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet", reason="parquet files are read with pyarrow")
        (tmp_path / "x.png").write_bytes(PICTURES[2])
        rows = {
            "image": [{"bytes": PICTURES[i], "path": "p"} for i in range(2)] + [{"bytes": None, "path": "x.png"}],
            "raw": PICTURES,
            "several": [[PICTURES[0], PICTURES[1]], [], None],
            "prompt": ["a", None, "c"],
            "score": [1.0, float("nan"), 2.0],
        }
        parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet", row_group_size=2)
        source = pickle.loads(pickle.dumps(ParquetSource([tmp_path / "a.parquet"], ("image", "several"), tmp_path)))
        read = [[source.open(each) for each in source.row(i).references("image")] for i in range(3)]
        assert read == [[picture] for picture in PICTURES]
        assert source.row(1).values == {"prompt": None, "score": None, "several": None}
        assert source.open(source.row(2).references("raw")[0]) == PICTURES[2]
        assert [source.open(each) for each in source.row(0).references("several")] == PICTURES[:2]
        assert source.row(1).references("several") == source.row(2).references("several") == ()
        bare = ParquetSource(tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="Give the folder that it is relative to as `base`"):
            bare.open(bare.row(2).references("image")[0])

    def test_what_is_not_parquet_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow", reason="parquet files are read with pyarrow")
        (tmp_path / "a.parquet").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="is not a parquet file"):
            ParquetSource(tmp_path / "a.parquet")


class TestSavedDataset:
    def test_images_are_not_decoded(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets", reason="saved data sets are read with the datasets library")
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "pair": datasets.List(datasets.Image()),
                "prompt": datasets.Value("string"),
            }
        )
        rows = {
            "image": [{"bytes": picture, "path": None} for picture in PICTURES],
            "pair": [[{"bytes": PICTURES[0], "path": None}, {"bytes": PICTURES[1], "path": None}]] * 3,
            "prompt": ["a", "b", None],
        }
        whole = datasets.Dataset.from_dict(rows, features=features)
        datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "set"))
        source = pickle.loads(pickle.dumps(SavedDatasetSource(tmp_path / "set", "train")))
        assert [source.open(source.row(i).references("image")[0]) for i in range(3)] == PICTURES
        assert [source.open(each) for each in source.row(1).references("pair")] == PICTURES[:2]
        assert source.row(2).values == {"prompt": None}
        assert source.stamp(source.row(0).references("image")[0])
        with pytest.raises(ValueError, match=r"`split` must be one of \['train'\]"):
            SavedDatasetSource(tmp_path / "set")
