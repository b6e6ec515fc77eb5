"""Where files are found and downloaded from."""

import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from diffusers_flux_ext.diffsynth import ModelConfig, load_state_dict, model_config


@pytest.fixture
def base(tmp_path, monkeypatch):
    for name in ("DIFFSYNTH_MODEL_BASE_PATH", "DIFFSYNTH_SKIP_DOWNLOAD", "DIFFSYNTH_DOWNLOAD_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "owner" / "name"
    (folder / "text").mkdir(parents=True)
    for name in ("one.safetensors", "text/a-1.safetensors", "text/a-2.safetensors", "text/b.bin", "text/config.json"):
        (folder / name).write_bytes(b"")
    return tmp_path


def found(config):
    config.download_if_necessary()
    return config.path


def local(**fields):
    return ModelConfig(model_id="owner/name", skip_download=True, **fields)


def test_files_of_a_repository(base):
    assert found(local(origin_file_pattern="one.safetensors")) == "./models/owner/name/one.safetensors"
    shards = local(origin_file_pattern="text/*.safetensors")
    assert found(shards) == [f"./models/owner/name/text/a-{n}.safetensors" for n in (1, 2)]
    assert shards.weight_files() == shards.path
    assert found(local()) == found(local(origin_file_pattern="./")) == "./models/owner/name"


def test_a_folder_gives_its_weights(base):
    config = local(origin_file_pattern="text/")
    assert found(config) == "./models/owner/name/text/"
    assert [file.rpartition("/")[2] for file in config.weight_files()] == ["a-1.safetensors", "a-2.safetensors"]
    several = local(origin_file_pattern="text/*")
    found(several)
    assert [file.rpartition("/")[2] for file in several.weight_files()] == [
        "a-1.safetensors",
        "a-2.safetensors",
        "b.bin",
    ]


def test_the_environment_names_the_folder_first(base, monkeypatch):
    (base / "models").rename(base / "elsewhere")
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", str(base / "elsewhere"))
    assert found(local(origin_file_pattern="one.safetensors", local_model_path="x")).startswith(
        str(base / "elsewhere")
    )
    monkeypatch.delenv("DIFFSYNTH_MODEL_BASE_PATH")
    assert found(local(origin_file_pattern="one.safetensors", local_model_path="elsewhere")).startswith("elsewhere/")


def test_a_repository_in_the_place_of_a_path(base):
    config = ModelConfig("owner/name", origin_file_pattern="text/", skip_download=True)
    assert found(config) == "./models/owner/name/text/"


def test_what_is_missing_is_named(base):
    with pytest.raises(ValueError, match="names no files"):
        found(ModelConfig())
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors.*owner/name.*DIFFSYNTH_MODEL_BASE_PATH"):
        found(local(origin_file_pattern="two.safetensors"))
    with pytest.raises(ValueError, match=r"`download_source` is other"):
        found(ModelConfig(model_id="owner/name", origin_file_pattern="x", download_source="other"))


@pytest.mark.parametrize("source", ["huggingface", "HuggingFace"])
def test_a_download_leaves_out_what_is_there(base, monkeypatch, source):
    calls = []
    monkeypatch.setattr(model_config, "snapshot_download", lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setenv("DIFFSYNTH_DOWNLOAD_SOURCE", source)
    found(ModelConfig(model_id="owner/name", origin_file_pattern="text/*.safetensors"))
    (((name,), options),) = calls
    assert name == "owner/name"
    assert options["local_dir"] == "./models/owner/name"
    assert options["allow_patterns"] == ["text/*.safetensors"]
    assert sorted(options["ignore_patterns"]) == ["text/a-1.safetensors", "text/a-2.safetensors"]


def test_modelscope(base, monkeypatch):
    calls = []
    stand_in = types.ModuleType("modelscope")
    stand_in.snapshot_download = lambda *args, **kwargs: calls.append((args, kwargs))
    monkeypatch.setitem(sys.modules, "modelscope", stand_in)
    found(ModelConfig(model_id="owner/name", origin_file_pattern="text/"))
    assert calls[0][1]["allow_file_pattern"] == ["text/*"]
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ImportError, match=r"pip install modelscope.*huggingface.*skip_download"):
        found(ModelConfig(model_id="owner/name", origin_file_pattern="text/"))


def test_reading_weights(tmp_path):
    one, two = {"a": torch.ones(2)}, {"b": torch.zeros(2)}
    save_file(one, tmp_path / "1.safetensors")
    save_file(two, tmp_path / "2.safetensors")
    torch.save({"state_dict": two}, tmp_path / "2.pt")
    read = load_state_dict([str(tmp_path / "1.safetensors"), str(tmp_path / "2.pt")], torch_dtype=torch.float16)
    assert read.keys() == {"a", "b"}
    assert read["a"].dtype == torch.float16
    torch.save({"a": torch.ones(2, device="meta")}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty\.pt` holds tensors without values"):
        load_state_dict(tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"2\.safetensors.*`b`"):
        load_state_dict([tmp_path / "2.pt", tmp_path / "2.safetensors"])
