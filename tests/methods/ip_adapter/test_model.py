"""The IP-Adapter model: every published layout, files, folders and the released sizes."""

import importlib.util
import inspect
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.tiny.ip_adapter import (
    XLABS,
    image_embeds,
    nested_state_dict,
    picture,
    tiny_ip_adapter,
    xlabs_state_dict,
)
from diffusers_flux_ext import FluxIPAdapter


HEADS = {"attention_head_dim": 16}


def diffsynth_state_dict(adapter):
    return {key.replace("ip_adapter.", "ipadapter_modules."): value for key, value in adapter.state_dict().items()}


LAYOUTS = {
    "ours": ({}, lambda adapter: dict(adapter.state_dict())),
    "instantx": ({}, nested_state_dict),
    "diffsynth": ({}, diffsynth_state_dict),
    "xlabs": (XLABS, xlabs_state_dict),
    "diffusers": (XLABS, nested_state_dict),
    "diffusers flat": (XLABS, lambda adapter: dict(adapter.state_dict())),
}


def sizes_of(adapter):
    return {key: value for key, value in adapter.config.items() if not key.startswith("_")}


def is_same(loaded, adapter):
    embeds = image_embeds(0, 1, 2, 12)
    assert sizes_of(loaded) == sizes_of(adapter)
    assert all(torch.equal(*pair) for pair in zip(loaded(embeds), adapter(embeds)))
    return True


@pytest.mark.parametrize("layout", LAYOUTS)
class TestLayouts:
    def test_a_state_dict(self, layout):
        sizes, spell = LAYOUTS[layout]
        adapter = tiny_ip_adapter(1, **sizes)
        state_dict = spell(adapter)
        loaded = FluxIPAdapter.from_state_dict(state_dict, **HEADS)
        assert is_same(loaded, adapter)
        assert not loaded.training
        with torch.no_grad():
            next(loaded.parameters()).add_(1)
        assert is_same(FluxIPAdapter.from_state_dict(state_dict, **HEADS), adapter)

    @pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
    def test_a_file(self, layout, suffix, tmp_path):
        sizes, spell = LAYOUTS[layout]
        adapter, path = tiny_ip_adapter(1, **sizes), tmp_path / f"ip-adapter{suffix}"
        state_dict = spell(adapter)
        if suffix == ".bin":
            torch.save(state_dict, path)
        elif any(isinstance(part, dict) for part in state_dict.values()):
            flat = {f"{part}.{key}": value for part in state_dict for key, value in state_dict[part].items()}
            save_file(flat, path)
        else:
            save_file(state_dict, path)
        assert is_same(FluxIPAdapter.from_single_file(path, **HEADS), adapter)
        half = FluxIPAdapter.from_single_file(path, dtype=torch.bfloat16, **HEADS)
        assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}

    def test_a_folder(self, layout, tmp_path):
        adapter = tiny_ip_adapter(1, **LAYOUTS[layout][0])
        adapter.save_pretrained(tmp_path)
        assert is_same(FluxIPAdapter.from_pretrained(tmp_path), adapter)


def test_the_defaults_are_the_released_sizes():
    with torch.device("meta"):
        adapter = FluxIPAdapter()
    shapes = {key: tuple(weight.shape) for key, weight in adapter.state_dict().items()}
    assert len(shapes) == 6 + 2 * 57
    assert shapes["image_proj.proj.0.weight"] == (2304, 1152)
    assert shapes["image_proj.proj.2.weight"] == (128 * 4096, 2304)
    assert shapes["image_proj.norm.weight"] == (4096,)
    assert shapes["ip_adapter.56.to_v_ip.weight"] == (3072, 4096)


@pytest.mark.parametrize("num_tokens", [4, 16])
def test_released_xlabs_sizes_are_inferred(num_tokens):
    from diffusers_flux_ext.methods.ip_adapter.checkpoint import convert_ip_adapter_state_dict, infer_ip_adapter_config

    with torch.device("meta"):
        sizes = {**XLABS, "num_blocks": 19, "attention_head_dim": 128, "num_attention_heads": 24}
        sizes |= {"cross_attention_dim": 4096, "image_embed_dim": 768, "num_tokens": num_tokens}
        adapter = FluxIPAdapter(**sizes)
    renamed = convert_ip_adapter_state_dict(xlabs_state_dict(adapter))
    shapes = {key: tuple(weight.shape) for key, weight in renamed.items()}
    assert infer_ip_adapter_config(shapes) == sizes


def test_the_constructor_is_flat_and_typed():
    parameters = list(inspect.signature(FluxIPAdapter.__init__).parameters.values())[1:]
    assert all(part.default is not part.empty and part.annotation is not part.empty for part in parameters)
    assert set(FluxIPAdapter(**tiny_ip_adapter(0).config).config) >= {part.name for part in parameters}


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_a_pickle_with_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("evil.bin", "wb") as file:
        pickle.dump({"image_proj": Evil()}, file, protocol=2)
    with pytest.raises(ValueError, match="could run code"):
        FluxIPAdapter.from_single_file("evil.bin")
    assert not Path("ran").exists()


def without(key):
    return {name: value for name, value in tiny_ip_adapter(1).state_dict().items() if name != key}


def changed(key, tensor, **sizes):
    return {**tiny_ip_adapter(1, **sizes).state_dict(), key: tensor}


BAD = {
    "unknown": (changed("transformer.0.weight", torch.zeros(1)), {}, "Keys that no.*`transformer.0.weight`"),
    "odd block": (changed("ip_adapter.0.to_q_ip.weight", torch.zeros(1)), {}, "to_q_ip"),
    "nothing": ({}, {}, "Keys that no FLUX.1 IP-Adapter has"),
    "projection": (without("image_proj.norm.weight"), {}, "these are missing: `image_proj.norm.weight`"),
    "value": (without("ip_adapter.3.to_v_ip.weight"), {}, "Missing: `ip_adapter.3.to_v_ip.weight`"),
    "block": (without("ip_adapter.0.to_k_ip.weight"), {}, "missing: `ip_adapter.0.to_k_ip.weight`"),
    "structure": (dict(tiny_ip_adapter(1, kv_bias=True).state_dict()), {}, "an MLP and its blocks have biases"),
    "shape": (changed("ip_adapter.2.to_k_ip.weight", torch.zeros(3, 20)), {}, r"\(3, 20\), but \(32, 20\)"),
    "heads": (dict(tiny_ip_adapter(1).state_dict()), {"attention_head_dim": 128}, "Pass `attention_head_dim`"),
    "not tensors": ({"image_proj": {"proj.weight": 3.0}, "ip_adapter": {}}, {}, "other things than tensors"),
    "twice": (
        {**tiny_ip_adapter(1).state_dict(), **diffsynth_state_dict(tiny_ip_adapter(2))},
        {},
        "Two keys of the file mean",
    ),
}


@pytest.mark.parametrize("state_dict, overrides, message", BAD.values(), ids=BAD)
def test_bad_state_dicts(state_dict, overrides, message):
    with pytest.raises(ValueError, match=message):
        FluxIPAdapter.from_state_dict(state_dict, **{**HEADS, **overrides})


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        FluxIPAdapter.from_single_file(tmp_path / "absent.bin")
    for name, content in (("text.safetensors", b"none"), ("text.bin", b""), ("picture.bin", picture().tobytes())):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            FluxIPAdapter.from_single_file(tmp_path / name)
    torch.save(torch.zeros(2), tmp_path / "tensor.bin")
    with pytest.raises(ValueError, match="holds a Tensor"):
        FluxIPAdapter.from_single_file(tmp_path / "tensor.bin")


def test_a_wrong_kind_of_projection():
    with pytest.raises(ValueError, match="'resampler'; expected 'mlp' or 'linear'"):
        tiny_ip_adapter(0, image_proj_type="resampler")


class TestScript:
    @pytest.fixture(scope="class")
    def script(self):
        path = Path(__file__).parents[3] / "conversion_scripts" / "convert_ip_adapter.py"
        spec = importlib.util.spec_from_file_location("convert_ip_adapter", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_there_is_a_folder_afterwards(self, script, tmp_path):
        adapter = tiny_ip_adapter(1)
        torch.save(nested_state_dict(adapter), tmp_path / "ip-adapter.bin")
        arguments = [str(tmp_path / "ip-adapter.bin"), str(tmp_path / "out"), "--attention-head-dim", "16"]
        assert script.main(arguments) == 0
        assert is_same(FluxIPAdapter.from_pretrained(tmp_path / "out"), adapter)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ip-adapter.bin", "out"]

    def test_wrong_inputs_write_nothing(self, script, tmp_path, capsys):
        (tmp_path / "there").mkdir()
        save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors")
        before = sorted(tmp_path.iterdir())
        for source, target in (("odd.safetensors", "out"), ("odd.safetensors", "there"), ("absent.bin", "out")):
            assert script.main([str(tmp_path / source), str(tmp_path / target)]) == 1
        errors = capsys.readouterr().err
        assert "`x`" in errors
        assert "exists already" in errors
        assert "no file" in errors
        assert sorted(tmp_path.iterdir()) == before
