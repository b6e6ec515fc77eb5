"""The generated LoRA files mean what they claim: checked by hand, by diffusers' and by the reference's loaders."""

import json
import struct

import pytest
import torch
from safetensors.torch import load

from benchmarks.support.lora_files import FORMATS, Sizes, broken_files, cases, harmless_pickle, make
from benchmarks.support.lora_files.factors import divisors
from benchmarks.support.lora_files.readers import (
    components,
    diffusers_reading,
    read_diffsynth,
    read_diffusers,
    read_loaded,
    save_lora,
)
from benchmarks.support.lora_files.sizes import clip_modules, t5_modules, transformer_modules
from benchmarks.support.lora_files.verdict import Reading, judge, keeps_magnitudes


READ_BY_DIFFUSERS = [
    ("diffusers_peft", "everything"),
    ("diffusers_peft", "ranks_of_parts"),
    ("diffusers_peft_meta", "pattern_of_proj_out"),
    ("diffusers_peft_meta", "pattern_anchored"),
    ("diffusers_peft_meta", "pattern_of_regex"),
    ("diffusers_peft_meta", "rslora_ranks"),
    ("diffusers_peft_bias", "bias_everywhere"),
    ("diffusers_peft_dora", "default"),
    ("diffusers_te_old", "old_clip_names"),
    ("diffusers_old_alpha", "alpha_by_module"),
    ("kohya", "default"),
    ("kohya", "block_diagonal"),
    ("kohya", "alpha_with_clip"),
    ("kohya", "alpha_and_ranks_by_module"),
    ("kohya", "deep"),
    ("bfl_down_up", "alpha_half"),
    ("fal_kontext", "default"),
    ("xlabs", "default"),
    ("xlabs_prefixed", "only_double"),
]
READ_BY_THE_REFERENCE = [
    ("diffsynth_nodefault", "everything"),
    ("diffsynth_nodefault", "only_adaln"),
    ("diffsynth_split", "only_modulation"),
    ("diffusers_peft_alpha", "alpha_half"),
    ("kohya", "alpha_five_of_three"),
    ("kohya", "alpha_zero"),
]


def test_there_are_many_files():
    # Each is checked where it is converted, in tools/test_convert.py.
    assert sum(len(cases(format)) for format in FORMATS) >= 1500


@pytest.mark.parametrize("format", FORMATS)
def test_files_depend_on_the_seed_alone(format):
    first, again, other = make(format, seed=1), make(format, seed=1), make(format, seed=2)
    assert list(first.state_dict) == list(again.state_dict)
    assert all(torch.equal(first.state_dict[key], again.state_dict[key]) for key in first.state_dict)
    assert any(not torch.equal(first.expected[name], other.expected[name]) for name in first.expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_the_change_is_that_of_the_stored_values(dtype):
    file = make("kohya", dtype=dtype)
    prefix = "lora_unet_single_blocks_1_linear1"
    down, up = (file.state_dict[f"{prefix}.lora_{name}.weight"] for name in ("down", "up"))
    assert down.dtype == up.dtype == dtype
    dense = up.float().double() @ down.float().double()
    parts = [file.expected[f"transformer.single_transformer_blocks.1.attn.to_{part}"] for part in "qkv"]
    parts.append(file.expected["transformer.single_transformer_blocks.1.proj_mlp"])
    torch.testing.assert_close(torch.cat(parts), dense, atol=0, rtol=1e-12)


def test_the_rows_of_the_final_modulation_are_swapped():
    file = make("bfl_alpha", "alpha_with_everything")
    name = "diffusion_model.final_layer.adaLN_modulation.1.lora_"
    down, up = (file.state_dict[f"{name}{letter}.weight"].double() for letter in "AB")
    shift, scale = (0.5 * up @ down).chunk(2)
    torch.testing.assert_close(file.expected["transformer.norm_out.linear"], torch.cat([scale, shift]))


def test_the_change_of_a_kronecker_product_is_built_from_its_entries():
    file = make("kohya_lokr", "factor_8_both")
    key = "lora_unet_double_blocks_0_img_mlp_0.lokr_"
    left = file.state_dict[f"{key}w1_a"].double() @ file.state_dict[f"{key}w1_b"].double()
    right = file.state_dict[f"{key}w2_a"].double() @ file.state_dict[f"{key}w2_b"].double()
    change = file.expected["transformer.transformer_blocks.0.ff.net.0.proj"]
    rows, columns = right.shape
    for row, column in ((0, 0), (5, 3), (127, 31)):
        entry = left[row // rows, column // columns] * right[row % rows, column % columns]
        torch.testing.assert_close(change[row, column], entry)


def test_factors_of_widths():
    assert divisors(3072, -1) == (48, 64)
    assert divisors(3072, 8) == (8, 384)
    assert divisors(64, 16) == (4, 16)
    assert divisors(6144, -1) == (64, 96)
    assert divisors(21504, -1) == (128, 168)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "case"), READ_BY_DIFFUSERS)
def test_diffusers_reads_what_the_file_means(tmp_path, format, case):
    file = make(format, case)
    reading = read_diffusers(file, tmp_path)
    assert judge(file, reading) == "exact"
    assert keeps_magnitudes(file, reading)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "case"), READ_BY_THE_REFERENCE)
def test_the_reference_reads_what_the_file_means(tmp_path, format, case):
    file = make(format, case)
    assert judge(file, read_diffsynth(file, tmp_path)) == "exact"


def test_diffusers_control_lora_is_wrong_in_one_layer_only(tmp_path):
    file = make("bfl_control")
    reading = read_diffusers(file, tmp_path)
    assert judge(file, reading) == "wrong"
    reading.weights["transformer.norm_out.linear"] = file.expected["transformer.norm_out.linear"]
    assert judge(file, reading) == "exact"


@pytest.mark.parametrize(
    ("format", "case"),
    [
        ("diffusers_peft_alpha", "alpha_by_module"),
        ("diffusers_peft_meta", "rslora_ranks"),
        ("diffusers_peft", "with_both"),
    ],
)
def test_a_file_in_diffusers_layout_is_evaluated(format, case):
    file = make(format, case)
    assert judge(file, diffusers_reading(file.state_dict, file.metadata)) == "exact"


@pytest.mark.parametrize(
    ("format", "case"),
    [("diffusers_peft", "with_clip"), ("diffusers_peft_bias", "default"), ("diffusers_peft_dora", "default")],
)
def test_a_loaded_file_is_measured_on_outputs(tmp_path, format, case):
    file = make(format, case)
    reading = read_loaded(file, tmp_path)
    assert judge(file, reading) == "exact"
    assert keeps_magnitudes(file, reading)


def test_verdicts():
    file = make("diffusers_peft")
    half = dict(list(file.expected.items())[::2])
    off = {**file.expected, **{name: change * (1 + 1e-4) for name, change in half.items()}}
    assert judge(file, Reading(dict(file.expected))) == "exact"
    assert judge(file, Reading(half)) == "partial"
    assert judge(file, Reading(off)) == "wrong"
    assert judge(file, Reading({**file.expected, "transformer.proj_out": torch.ones(64, 32)})) == "wrong"
    assert judge(file, Reading()) == "no-op"
    muted = make("kohya", "alpha_zero")
    assert judge(muted, Reading()) == "exact"


def test_a_saved_file_has_its_header_and_its_sidecar(tmp_path):
    file = make("peft_basemodel", "rslora")
    save_lora(file, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_rslora"] is True
    content = save_lora(make("diffusers_peft_meta", "alpha_half"), tmp_path).read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert json.loads(header["__metadata__"]["lora_adapter_metadata"])["transformer.lora_alpha"] == 2.0


def test_sizes_are_those_of_the_tiny_models():
    sizes = Sizes(double=3, single=1)
    parts = components(sizes)
    for component, modules in (
        ("transformer", transformer_modules(sizes)),
        ("text_encoder", clip_modules(sizes)),
        ("text_encoder_2", t5_modules(sizes)),
    ):
        linears = {
            name: tuple(module.weight.shape)
            for name, module in parts[component].named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        assert linears == modules


def test_broken_files_are_broken_as_named():
    files = {name: content for name, content, _ in broken_files()}
    assert len(files) == len(list(broken_files())) > 40
    for name in ("empty", "truncated", "header_too_long", "header_wrong_offsets", "page", "pickle_as"):
        with pytest.raises(Exception, match=r"\w"):
            load(files[f"{name}.safetensors"])
    for name in ("nan", "two_adapters", "flux2", "timestep", "header_of_another_rank"):
        assert load(files[f"{name}.safetensors"])
    name, content = harmless_pickle()
    assert name.endswith(".pt")
    assert content


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match="xlabs has no case 'everything'"):
        make("xlabs", "everything")
    assert "everything" not in cases("xlabs")
