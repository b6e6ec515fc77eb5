"""Reports say what a file holds, and what diffusers' own loader would make of it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.lora_files import FORMATS, cases, make
from benchmarks.support.lora_files.readers import read_diffusers, resized_diffusers, save_lora
from benchmarks.support.lora_files.verdict import judge, keeps_magnitudes
from diffusers_flux_ext import LoRAError, convert_lora, inspect_lora
from diffusers_flux_ext.cli.lora import describe


def report_of(file, tmp_path):
    path = save_lora(file, tmp_path)
    with resized_diffusers(file.sizes):
        return inspect_lora(path)


CASES = ("default", "everything", "with_t5", "alpha_five_of_three", "alpha_negative")


@pytest.mark.slow
@pytest.mark.parametrize(
    "format, case", [(format, case) for format in FORMATS for case in CASES if case in cases(format)]
)
def test_the_verdict_is_what_diffusers_does(tmp_path, format, case):
    file = make(format, case)
    found = report_of(file, tmp_path).diffusers
    if case == "alpha_negative" and any(".lora_down.weight" in key for key in file.state_dict):
        # diffusers never returns from these.
        assert found == "fails"
        return
    try:
        reading = read_diffusers(file, tmp_path)
        measured = judge(file, reading)
        if measured == "exact" and file.dora and not keeps_magnitudes(file, reading):
            measured = "partial"
    # Any exception of diffusers is a failure of its loader.
    except Exception:
        measured = "error"
    agreeing = {"exact": {"fully"}, "partial": {"partly", "not"}, "wrong": {"wrongly"}, "no-op": {"not", "fails"},
                "error": {"fails", "not"}}  # fmt: skip
    assert found in agreeing[measured]


def test_the_numbers(tmp_path):
    file = make("kohya", "alpha_half")
    report = report_of(file, tmp_path)
    assert report.format == "kohya"
    assert report.modules["transformer_blocks"] == (28, 19 * 14)
    assert report.modules["single_transformer_blocks"] == (12, 38 * 6)
    assert set(report.scales) == {0.5}
    assert report.kinds == {"lora": sum(report.ranks.values())}
    assert report.num_tensors == len(file.state_dict)
    assert report.size == sum(value.numel() * value.element_size() for value in file.state_dict.values())
    for block in ("transformer_blocks.0", "single_transformer_blocks.1"):
        wanted = sum(
            float(value.square().sum()) for name, value in file.expected.items() if f".{block}." in f"{name}."
        )
        assert report.norms[block] == pytest.approx(wanted**0.5, rel=1e-5)


@pytest.mark.parametrize("format", ["kohya_lokr", "kohya_loha", "aitoolkit_full", "comfy_extract", "xlabs"])
def test_norms_of_other_products(format):
    file = make(format)
    report = inspect_lora(file.state_dict)
    linear = [value for name, value in file.expected.items() if name.startswith("transformer.")]
    total = sum(float(value.square().sum()) for value in linear)
    found = sum(norm**2 for block, norm in report.norms.items() if not block.startswith("text"))
    assert found == pytest.approx(total, rel=1e-4)


def test_what_is_wrong_is_listed_and_not_an_error():
    file = make("kohya")
    key = next(iter(file.state_dict))
    odd = {**file.state_dict, "other": torch.zeros(1), key: file.state_dict[key] * float("nan")}
    report = inspect_lora(odd)
    assert report.unmapped == ("other",)
    assert report.nonfinite == (key,)
    text = describe(report, "odd.safetensors")
    assert "not understood: 1 keys, such as other" in text
    assert "NaN or infinite: 1 keys" in text


def test_an_alpha_of_the_training_that_the_tensors_lost():
    report = inspect_lora(make("kohya_noalpha").state_dict, {"ss_network_alpha": "1", "ss_network_dim": "32"})
    assert "default_alpha=1" in report.warnings[0]


def test_text_encoders_and_json(tmp_path):
    report = report_of(make("onetrainer_comfy", "with_t5"), tmp_path)
    assert report.text_encoders["text_encoder_2"] == 14
    assert json.loads(json.dumps(report.to_dict()))["text_encoders"]["text_encoder_2"] == 14
    assert "text_encoder_2" in describe(report, "x")


def test_the_table_has_a_bar_for_every_block(tmp_path):
    lines = describe(report_of(make("kohya"), tmp_path), "style.safetensors").splitlines()
    bars = [line for line in lines if "_blocks." in line]
    assert len(bars) == 4
    assert max(line.count("#") for line in bars) == 40


def test_a_converted_file_is_applied_fully(tmp_path):
    for format in ("kohya", "xlabs", "diffsynth_native", "bfl_alpha", "kohya_loha", "onetrainer_legacy"):
        tensors, header = convert_lora(make(format, "default").state_dict)
        save_file(tensors, tmp_path / "lora.safetensors", header or None)
        report = inspect_lora(tmp_path / "lora.safetensors")
        kept = [reason for reason in report.diffusers_reasons if "text_encoder_2" not in reason]
        assert report.diffusers == "fully" or not kept


def test_other_models_are_named():
    with pytest.raises(LoRAError, match=r"FLUX\.2"):
        inspect_lora({"transformer.transformer_blocks.0.ff.linear_in.lora_A.weight": torch.zeros(2, 2)})


def test_an_error_without_words_shows_where_it_arose():
    """diffusers' converters assert the released sizes, without a message."""
    tensors, _ = convert_lora(make("diffusers_peft").state_dict, "kohya")
    report = inspect_lora(tensors)
    assert report.diffusers == "fails"
    assert report.diffusers_reasons[0].startswith("it raises AssertionError without a message, at `assert ")
