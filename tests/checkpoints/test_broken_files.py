"""Broken and hostile files of models are refused at once, by a message that names the file."""

import importlib.util
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.fuzzing.readers import CLASSES, stored
from benchmarks.support.tiny.redux import tiny_redux_embedder
from benchmarks.support.tiny.step1x import tiny_connector
from diffusers_flux_ext import FluxExtTransformer2DModel, Step1XConnector, load_redux_embedder, load_streamed
from diffusers_flux_ext.checkpoints.messages import list_keys, shorten
from diffusers_flux_ext.checkpoints.reading import read_weights_file
from diffusers_flux_ext.checkpoints.sizes import count_blocks
from diffusers_flux_ext.checkpoints.stored import read_layout
from diffusers_flux_ext.cli.main import main as command
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import load_checkpoint, save_checkpoint


READERS = {name: (file, weights, read) for name, file, weights, read in CLASSES if name != "weights file"}


def changed(folder, name, change):
    """The file of a reader with changed weights."""
    file, weights, read = READERS[name]
    content = dict(weights())
    nested = content.get("image_proj")
    part = nested if isinstance(nested, dict) else content
    change(part)
    return stored(file, lambda: content)(folder), read


class TestNames:
    def test_long_and_odd_names_are_shortened(self):
        assert shorten("a.weight") == "a.weight"
        assert len(shorten("k" * 50_000_000)) < 200
        assert "50000000 characters" in shorten("k" * 50_000_000)
        assert shorten("a\n\u202eb") == r"a\n\u202eb"
        assert len(list_keys([f"{i}" * 1000 for i in range(50)])) < 2500
        assert shorten(10**5000) == "<class 'int'>"

    def test_blocks_are_counted_without_gaps(self):
        assert count_blocks(["a.0.x", "a.1.x", "b.7.x", "a.1.y"], "a") == 2
        assert count_blocks(["b.0"], "a") == 0
        for odd in ("3", "-1", "01", "9" * 5000, "\u0661"):
            with pytest.raises(ValueError, match=r"`a\.1` is missing"):
                count_blocks(["a.0.x", f"a.{odd}.x"], "a")


INDEXED = {
    "transformer, diffusers": "transformer_blocks.1.",
    "transformer, bfl": "double_blocks.1.",
    "controlnet": "single_transformer_blocks.",
    "step1x connector": "connector.S.individual_token_refiner.blocks.1.",
    "infinite you projector": "layers.1.",
    "nexus merger": "embedding_merger.layers.0.",
    "ip-adapter, pickle": "ip_adapter.1.",
    "lora encoder": "encoders.0.",
}


@pytest.mark.parametrize("index", ["99999999", "9" * 6000, "17"])
@pytest.mark.parametrize("name", [name for name in INDEXED if name != "controlnet"])
def test_indices_with_gaps_build_nothing(tmp_path, name, index, monkeypatch):
    start = INDEXED[name]
    stem = start.rpartition(".")[0].rpartition(".")[0]

    def change(weights):
        key = next(key for key in weights if key.startswith(start))
        weights[key.replace(start, f"{stem}.{index}.")] = weights[key]

    path, read = changed(tmp_path, name, change)
    monkeypatch.setattr(torch.nn.ModuleList, "__init__", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match=path.name) as caught:
        read(path)
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64], ids=str)
def test_weights_that_are_not_floating_point_are_refused(tmp_path, name, dtype):
    def change(weights):
        # Of a decoder's file the adapter alone is read.
        key = next(key for key in reversed(weights) if key.endswith("weight"))
        weights[key] = weights[key].to(dtype)

    path, read = changed(tmp_path, name, change)
    with pytest.raises(ValueError, match=rf"{path.name}.*({dtype}|C64|missing|lacks)"):
        read(path)


@pytest.mark.parametrize("name", ["controlnet", "controlnet, union", "transformer, bfl", "lora encoder", "redux"])
def test_single_numbers_in_place_of_tensors_are_named(tmp_path, name):
    for key in sorted(READERS[name][1]())[:: 1 if name.startswith("controlnet, union") else 7]:

        def change(weights, key=key):
            weights[key] = torch.zeros((), dtype=weights[key].dtype)

        path, read = changed(tmp_path, name, change)
        with pytest.raises(ValueError, match=path.name):
            read(path)


@pytest.mark.parametrize("name", READERS)
def test_cut_and_missing_files_are_named(tmp_path, name):
    path, read = changed(tmp_path, name, lambda weights: None)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=path.name):
        read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        read(path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path.name}` is a pipe"):
        read(path)


@pytest.mark.parametrize("name", READERS)
def test_empty_tensors_of_huge_shapes_build_nothing(tmp_path, name):
    def change(weights):
        weights.update({key: torch.zeros(0, 10**12) for key in weights if weights[key].ndim})

    path, read = changed(tmp_path, name, change)
    with pytest.raises(ValueError, match=path.name):
        read(path)


class TestPickles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"redux_up.weight": 3}, "`redux_up.weight`"),
            ({3: torch.zeros(1)}, "keys `3`, which are not strings"),
            ({"a": {"b": {"c": {"d": {"e": {}}}}}}, "without end"),
            ({"a": torch.zeros(2, 2).to_sparse()}, "torch.sparse_coo tensor"),
            ({"a": torch.zeros(1).expand(100_000, 100_000)}, "take 40000000000 bytes"),
            ([torch.zeros(1)], "holds a list"),
        ],
    )
    def test_other_things_than_named_tensors(self, tmp_path, content, message):
        path = tmp_path / "weights.pt"
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"weights.pt.*{message}"):
            load_redux_embedder(path)

    def test_an_archive_that_unpacks_to_much_more_is_not_unpacked(self, tmp_path):
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(2**20)}, buffer)
        path = tmp_path / "bomb.pt"
        with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in source.namelist():
                packed.writestr(name, source.read(name))
        assert path.stat().st_size < 20_000
        with pytest.raises(ValueError, match=r"bomb.pt` would unpack to \d+ bytes"):
            read_weights_file(path)

    def test_mappings_are_checked_as_well(self):
        with pytest.raises(ValueError, match="expected ordinary tensors only"):
            load_redux_embedder({**tiny_redux_embedder().state_dict(), "redux_up.weight": None})


CONFIGS = ["1000000000", "1e400", "NaN", "-5000", "1" + "0" * 5000]


@pytest.mark.parametrize("value", CONFIGS, ids=lambda value: value[:10])
class TestConfigs:
    def edit(self, folder, key, value):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        assert key in config
        path.write_text(json.dumps({**config, key: "HOLE"}).replace('"HOLE"', value))

    @pytest.mark.parametrize("key", ["num_layers", "num_single_layers"])
    def test_streaming(self, tmp_path, key, value):
        tiny_transformer(0).save_pretrained(tmp_path)
        self.edit(tmp_path, key, value)
        with pytest.raises(ValueError, match="config.json"):
            load_streamed(FluxExtTransformer2DModel, tmp_path)

    def test_own_models(self, tmp_path, value):
        tiny_connector().save_pretrained(tmp_path)
        self.edit(tmp_path, "num_layers", value)
        with pytest.raises((ValueError, OSError), match="config.json"):
            Step1XConnector.from_pretrained(tmp_path)

    @pytest.mark.parametrize("key", ["num_layers", "attention_head_dim"])
    def test_plan(self, tmp_path, key, value, capsys):
        from benchmarks.fuzzing.readers import _pipeline_configs

        _pipeline_configs("transformer/config.json")(tmp_path)
        self.edit(tmp_path / "transformer", key, value)
        assert command(["plan", "--model", str(tmp_path), "--size", "128"]) == 2
        assert "transformer/config.json" in capsys.readouterr().err


def test_streaming_compares_sizes_before_it_takes_memory(tmp_path, monkeypatch):
    tiny_transformer(0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "joint_attention_dim": 10**7}))
    monkeypatch.setattr(
        "diffusers_flux_ext.offload.disk.streaming.init_empty_weights", lambda **_: pytest.fail("memory was taken")
    )
    with pytest.raises(ValueError, match=f"{tmp_path}.*of another shape: `context_embedder.weight`"):
        load_streamed(FluxExtTransformer2DModel, tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../../secret.safetensors"}}',
        '{"weight_map": {"a": "b.bin"}}',
        '{"weight_map": ' + "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
    ids=range(8),
)
def test_malformed_indices_are_named(tmp_path, index):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(index if isinstance(index, bytes) else index.encode())
    with pytest.raises(ValueError, match="model.safetensors.index.json"):
        read_layout(tmp_path)


class TestTraining:
    @pytest.fixture
    def path(self, tmp_path):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight])
        weight.sum().backward()
        optimizer.step()
        save_checkpoint(tmp_path / "run.safetensors", 3, {"a": weight}, [optimizer])
        return tmp_path / "run.safetensors"

    def load(self, path):
        weight = torch.nn.Parameter(torch.ones(3))
        return load_checkpoint(path, {"a": weight}, [torch.optim.AdamW([weight])]), weight

    def test_cut_off(self, path):
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match="run.safetensors"):
            self.load(path)

    @pytest.mark.parametrize("training", [None, "", "{", "[]", '{"step": "x"}', '{"step": -1}', '{"step": 1e400}'])
    def test_no_step(self, path, training):
        save_file(load_file(path), path, metadata=None if training is None else {"training": training})
        with pytest.raises(ValueError, match="run.safetensors.*step"):
            self.load(path)

    @pytest.mark.parametrize("key", ["optimizer.0.7.exp_avg", "optimizer.0.x.exp_avg", "optimizer.0.0.odd"])
    def test_optimizers_of_another_run_change_nothing(self, path, key):
        assert self.load(path)[0] == 3
        shape = 5 if key.endswith("odd") else 3
        metadata = {"training": '{"step": 3}'}
        save_file({**load_file(path), key: torch.zeros(shape), "a": torch.zeros(3)}, path, metadata=metadata)
        weight = torch.nn.Parameter(torch.ones(3))
        with pytest.raises(ValueError, match="run.safetensors.*optimizers"):
            load_checkpoint(path, {"a": weight}, [torch.optim.AdamW([weight])])
        assert torch.equal(weight, torch.ones(3))

    def test_a_state_without_its_step_changes_nothing(self, path):
        content = {name: value for name, value in load_file(path).items() if not name.endswith(".step")}
        save_file({**content, "a": torch.zeros(3)}, path, metadata={"training": '{"step": 3}'})
        weight = torch.nn.Parameter(torch.ones(3))
        with pytest.raises(ValueError, match=r"run\.safetensors.*not those of these optimizers"):
            load_checkpoint(path, {"a": weight}, [torch.optim.AdamW([weight])])
        assert torch.equal(weight, torch.ones(3))


def script(name):
    path = Path(__file__).parents[2] / "conversion_scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["convert_transformer", "convert_controlnet", "convert_step1x_edit", "convert_redux"])
def test_scripts_tell_what_is_wrong_with_their_source(tmp_path, name, capsys):
    source = tmp_path / "source.safetensors"
    source.write_bytes(b"\x40" + bytes(7) + b"{" * 64)
    for target in ("folder", "file.safetensors"):
        assert script(name).main([str(source), str(tmp_path / target)]) == 1
        assert "source.safetensors" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_an_archive_over_several_disks_is_refused(tmp_path):
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)
    (tmp_path / "odd.pt").write_bytes(b"PK\x03\x04" + locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(ValueError, match=r"odd\.pt.*not an intact archive"):
        read_weights_file(tmp_path / "odd.pt")
