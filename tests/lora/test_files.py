"""LoRA files on disk: hostile ones are refused in one line, and nothing is half-written."""

import contextlib
import json
import os
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.support.lora_files import broken_files, harmless_pickle, make
from diffusers_flux_ext import LoRAError, convert_lora, convert_lora_file, inspect_lora
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.lora import files as lora_files
from diffusers_flux_ext.lora.reading.read import read_lora
from tests.fixtures.sampling import share_of
from tests.lora.lora_evaluation import assert_bit_equal


BROKEN = {name: (data, reason) for name, data, reason in broken_files()}


def file_name(name):
    return name if "." in name else f"{name}.safetensors"


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_in_one_line_and_write_nothing(tmp_path, capsys, name):
    source, target = tmp_path / file_name(name), tmp_path / "out" / "converted.safetensors"
    source.write_bytes(BROKEN[name][0])
    target.parent.mkdir()
    assert main(["lora", "convert", str(source), str(target)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("flux-ext lora convert: ")
    assert len(message.splitlines()) == 1
    assert not list(target.parent.iterdir())


def test_places_without_a_file(tmp_path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(LoRAError):
            convert_lora(path)
    with pytest.raises(LoRAError, match="expected a path or a mapping"):
        convert_lora(3)


def save(file, path):
    save_file({key: value.contiguous() for key, value in file.state_dict.items()}, path, file.metadata)
    return path


def test_a_folder_with_peft_s_config(tmp_path):
    file = make("peft_basemodel", "default")
    rank = next(value.shape[0] for key, value in file.state_dict.items() if "lora_A" in key)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 2.0, "use_rslora": False}))
    save(file, tmp_path / "adapter_model.safetensors")
    found, _ = convert_lora(tmp_path)
    assert {float(value) for key, value in found.items() if key.endswith(".alpha")} == {2.0}


def test_a_folder_with_several_files_is_ambiguous(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save(make("kohya"), tmp_path / name)
    with pytest.raises(LoRAError, match="2 weight files"):
        convert_lora(tmp_path)


def test_a_pickle_of_tensors_is_read(tmp_path):
    path = tmp_path / "lora.pt"
    path.write_bytes(harmless_pickle()[1])
    assert inspect_lora(path).format == "diffusers_peft"


def test_the_file_is_what_the_state_dict_would_be(tmp_path):
    source = save(make("kohya"), tmp_path / "source.safetensors")
    for to in ("diffusers", "bfl", "diffsynth", "kohya", "onetrainer"):
        target = tmp_path / f"{to}.safetensors"
        convert_lora_file(source, target, to)
        tensors, header = convert_lora(source, to)
        assert_bit_equal(load_file(target), tensors)
        with safe_open(target, "pt") as file:
            assert (file.metadata() or {}) == header


def test_joined_layers_and_casts_are_written(tmp_path):
    file, target = make("diffusers_peft"), tmp_path / "kohya.safetensors"
    convert_lora_file(file.state_dict, target, "kohya", dtype=torch.bfloat16)
    expected, _ = convert_lora(file.state_dict, "kohya", dtype=torch.bfloat16)
    assert_bit_equal(load_file(target), expected)


def test_existing_files_are_kept_unless_told(tmp_path):
    target = tmp_path / "lora.safetensors"
    target.write_text("mine")
    with pytest.raises(LoRAError, match="exists"):
        convert_lora_file(make("kohya").state_dict, target)
    assert target.read_text() == "mine"
    convert_lora_file(make("kohya").state_dict, target, overwrite=True)
    assert inspect_lora(target).diffusers
    convert_lora_file(target, target, "kohya", overwrite=True)
    assert inspect_lora(target).format == "kohya"


@pytest.mark.parametrize("target", ["missing/lora.safetensors", "."])
def test_targets_that_cannot_be_written(tmp_path, target):
    with pytest.raises(LoRAError, match="cannot be written|not replaced"):
        convert_lora_file(make("kohya").state_dict, tmp_path / target)


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(LoRAError, match="no space left"):
        convert_lora_file(make("kohya").state_dict, tmp_path / "lora.safetensors")
    assert not list(tmp_path.iterdir())


def test_only_the_needed_tensors_are_in_memory(tmp_path):
    path = save(make("kohya"), tmp_path / "lora.safetensors")
    opened = lora_files.open_lora(path)
    assert opened.is_mapped
    first = next(iter(opened.tensors.values()))
    first.add_(1)
    assert not torch.equal(first, next(iter(lora_files.open_lora(path).tensors.values())))


WHOLE = BROKEN["truncated.safetensors"][0]
KEYS = [*make("kohya").state_dict, *make("xlabs").state_dict, *make("diffsynth_native").state_dict]
SHAPES = [(4, 32), (32, 4), (96, 4), (), (1,), (0, 3), (2, 2, 2), (4, 64)]
HEADERS = ['{"r": []}', '{"transformer.r": 4, "transformer.alpha_pattern": {"(": 1}}', "[]", '{"lora_alpha": "x"}']


@pytest.mark.slow
@settings(max_examples=share_of(2500), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 60), st.text(max_size=6)), max_size=4),
    st.lists(
        st.sampled_from([(4, 32), (32, 4), (96, 4), (), (1,), (0, 3), (2, 2, 2), (4, 64)]), min_size=4, max_size=4
    ),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]),
    st.one_of(
        st.none(), st.text(max_size=30), st.just('{"r": []}'), st.just('{"transformer.alpha_pattern": {"(": 1}}')
    ),
)
def test_fuzzed_keys_shapes_and_headers_raise_our_errors_only(keys, shapes, dtype, header):
    state_dict = {
        key[:cut] + text + key[cut:]: torch.zeros(shape, dtype=dtype) for (key, cut, text), shape in zip(keys, shapes)
    }
    metadata = {} if header is None else {"lora_adapter_metadata": header}
    with contextlib.suppress(LoRAError):
        convert_lora(state_dict, "kohya", metadata)


@pytest.mark.slow
@settings(max_examples=share_of(2000), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=64),
    st.integers(0, len(WHOLE)),
    st.integers(0, 2**64 - 1),
    st.sampled_from([".safetensors", ".pt", ".bin"]),
    st.sampled_from(["cut", "insert", "length", "noise"]),
)
def test_fuzzed_files_raise_our_errors_only(tmp_path_factory, noise, place, length, suffix, change):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    data = {
        "cut": WHOLE[:place],
        "insert": WHOLE[:place] + noise + WHOLE[place:],
        "length": struct.pack("<Q", length) + WHOLE[8:],
        "noise": noise,
    }[change]
    path.write_bytes(data)
    with contextlib.suppress(LoRAError):
        read_lora(lora_files.open_lora(path).tensors)
