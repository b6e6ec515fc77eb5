"""Every LoRA layout converts to every other without loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.support.lora_files import FORMATS, cases, make
from diffusers_flux_ext import LoRAError, convert_lora, detect_lora_format
from diffusers_flux_ext.lora.errors import ForeignLoRAError, UnknownLoRAKeysError, UnsupportedLoRAError
from diffusers_flux_ext.lora.layouts import LORA_LAYOUTS
from diffusers_flux_ext.testing import seeded
from tests.lora.lora_evaluation import assert_bit_equal, assert_consistent, assert_same, expected_of, meaning


# XLabs' has names for attention only: see the end of the file.
LAYOUTS = sorted(LORA_LAYOUTS.keys() - {"xlabs"})
D = 32
# The spelling of a generated file is that of a layout we write.
WRITTEN = {"diffusers": "diffusers_peft_alpha", "kohya": "kohya", "bfl": "bfl_alpha",
           "diffsynth": "diffsynth_nodefault", "onetrainer": "onetrainer_legacy"}  # fmt: skip


def convert(file, to, **options):
    return convert_lora(file.state_dict, to, file.metadata, file.adapter_config, **options)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_every_file_becomes_diffusers_layout_exactly(format):
    for case in cases(format):
        file = make(format, case)
        assert_consistent(file)
        given = {key: value.clone() for key, value in file.state_dict.items()}
        assert_same(meaning(*convert(file, "diffusers")), expected_of(file))
        assert_bit_equal(file.state_dict, given)


@pytest.mark.slow
@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_becomes_every_layout_or_says_what_it_cannot_hold(format, to):
    file = make(format)
    beyond_diffsynth = file.dora or file.expected_bias or any("text_encoder" in name for name in file.expected)
    split_columns = format == "onetrainer_dora" and to in ("bfl", "kohya")
    if to == "diffsynth" and beyond_diffsynth or split_columns:
        with pytest.raises(UnsupportedLoRAError, match="cannot hold"):
            convert(file, to)
    else:
        assert_same(meaning(*convert(file, to)), expected_of(file))


@pytest.mark.parametrize("through", LAYOUTS)
@pytest.mark.parametrize("first", sorted(WRITTEN))
def test_round_trips_give_every_bit_back(first, through):
    file = make(WRITTEN[first], "alpha_half" if first != "diffsynth" else "default")
    there, header = convert(file, through)
    back, final = convert_lora(there, first, header)
    assert_same(meaning(back, final), expected_of(file))
    assert max(ranks(back)) == max(ranks(file.state_dict))
    # DiffSynth's files cannot hold an alpha.
    if through != "diffsynth":
        assert_bit_equal(back, convert(file, first)[0])


@pytest.mark.parametrize("through", LAYOUTS)
@pytest.mark.parametrize("format", ["diffusers_peft_alpha", "kohya", "bfl_alpha", "onetrainer_legacy"])
def test_alphas_and_ranks_of_every_layer_survive(format, through):
    file = make(format, "alpha_by_module")
    there, header = convert(file, through)
    assert_same(meaning(*convert_lora(there, "diffusers", header)), expected_of(file))


def ranks(state_dict):
    return [value.shape[0] for key, value in state_dict.items() if key.endswith(("lora_A.weight", "lora_down.weight"))]


def split_lora(ranks_by_part, alphas, shared, dtype, seed):
    """A LoRA of a single block in diffusers' layout with the given parts."""
    generator, lora = seeded(seed), {}
    down = torch.randn(4, D, generator=generator).to(dtype)
    for part, rank in ranks_by_part.items():
        name = f"transformer.single_transformer_blocks.3.{part}"
        rows = 4 * D if part == "proj_mlp" else D
        rank = 4 if shared else rank
        lora[f"{name}.lora_A.weight"] = down.clone() if shared else torch.randn(rank, D, generator=generator).to(dtype)
        lora[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator).to(dtype)
        if part in alphas:
            lora[f"{name}.alpha"] = torch.tensor(alphas[part])
    return lora


PARTS = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(PARTS), st.integers(1, 6), min_size=1),
    st.dictionaries(st.sampled_from(PARTS), st.sampled_from([-3.0, 0.0, 0.5, 1.0, 3.0, 16.0])),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]),
    st.sampled_from([layout for layout in LAYOUTS if layout != "diffusers"]),
    st.integers(0, 99),
)
def test_any_parts_any_ranks_any_alphas_survive_a_round_trip(parts, alphas, shared, dtype, to, seed):
    lora = split_lora(parts, alphas, shared, dtype, seed)
    there, header = convert_lora(lora, to)
    assert_same(meaning(there, header), meaning(lora))
    back, _ = convert_lora(there, "diffusers", header)
    assert_same(meaning(back), meaning(lora))
    # A muted layer leaves nothing by which its columns could be told from others'.
    for name in meaning(lora)[0]:
        assert back[f"{name}.lora_A.weight"].shape[0] <= lora[f"{name}.lora_A.weight"].shape[0]


def test_parts_that_share_a_factor_do_not_grow():
    lora = split_lora(dict.fromkeys(PARTS, 4), {}, True, torch.float32, 0)
    fused, _ = convert_lora(lora, "kohya")
    assert ranks(fused) == [4]
    apart, _ = convert_lora(split_lora(dict.fromkeys(PARTS, 4), {}, False, torch.float32, 0), "kohya")
    assert ranks(apart) == [16]
    partial, _ = convert_lora(split_lora({"attn.to_k": 3, "attn.to_v": 2}, {}, False, torch.float32, 0), "bfl")
    assert ranks(partial) == [5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("to", LAYOUTS)
def test_storage_dtypes_are_kept(dtype, to):
    lora = split_lora(dict.fromkeys(PARTS, 4), dict.fromkeys(PARTS, 8.0), False, dtype, 0)
    converted, _ = convert_lora(lora, to)
    factors = {value.dtype for key, value in converted.items() if not key.endswith(".alpha")}
    assert factors == {dtype}
    cast, _ = convert_lora(lora, to, dtype=torch.float32)
    assert {value.dtype for value in cast.values()} == {torch.float32}


def test_a_scale_that_the_dtype_cannot_hold_widens_one_factor_only():
    lora = split_lora({"attn.to_q": 3}, {"attn.to_q": 5.0}, False, torch.bfloat16, 0)
    converted, header = convert_lora(lora, "diffsynth")
    kinds = {key.split(".")[-2]: value.dtype for key, value in converted.items()}
    assert kinds == {"lora_A": torch.bfloat16, "lora_B": torch.float32}
    assert_same(meaning(converted, header), meaning(lora))


def test_results_own_their_memory():
    lora = make("kohya").state_dict
    converted, _ = convert_lora(lora)
    pointers = [value.untyped_storage().data_ptr() for value in converted.values()]
    assert len(set(pointers)) == len(pointers)
    assert not {value.untyped_storage().data_ptr() for value in lora.values()} & set(pointers)


def test_the_header_travels():
    file = make("diffusers_peft_meta", "pattern_of_proj_out")
    metadata = {**file.metadata, "ss_output_name": "mine", "trained_words": "sks"}
    there, header = convert_lora(file.state_dict, "kohya", metadata)
    assert header == metadata
    back, final = convert_lora(there, "diffusers", header)
    assert final == metadata
    assert_bit_equal(back, convert_lora(file.state_dict, "diffusers", metadata)[0])
    assert not any(key.endswith(".alpha") for key in back)


@pytest.mark.parametrize("format", ["diffusers_noprefix_meta", "diffusers_peft_meta"])
def test_peft_config_stays_where_diffusers_reads_it(format):
    file = make(format)
    converted, header = convert(file, "diffusers")
    assert '"transformer.r"' in header["lora_adapter_metadata"]
    assert not any(key.endswith(".alpha") for key in converted)


def test_alphas_and_peft_config_are_never_written_together():
    file = make("diffusers_peft_meta")
    name = next(key for key in file.state_dict if key.endswith("to_q.lora_A.weight")).removesuffix(".lora_A.weight")
    converted, header = convert_lora({**file.state_dict, f"{name}.alpha": torch.tensor(3.0)}, metadata=file.metadata)
    assert "lora_adapter_metadata" not in header
    assert float(converted[f"{name}.alpha"]) == 3.0


def test_the_final_projection_does_not_lend_its_alpha_to_the_single_blocks():
    lora = {}
    for name, rows, columns in (("proj_out", 64, D), ("single_transformer_blocks.0.proj_out", D, 5 * D)):
        lora[f"transformer.{name}.lora_A.weight"] = torch.randn(4, columns, generator=seeded(1))
        lora[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 4, generator=seeded(2))
    lora["transformer.proj_out.alpha"] = torch.tensor(12.0)
    lora["transformer.single_transformer_blocks.0.proj_out.alpha"] = torch.tensor(2.0)
    converted, header = convert_lora(lora)
    assert len({float(value) for key, value in converted.items() if key.endswith(".alpha")}) == 1
    assert_same(meaning(converted, header), meaning(lora))


def test_default_alpha_is_for_layers_that_say_nothing():
    lora = split_lora({"attn.to_q": 4, "attn.to_k": 4}, {"attn.to_k": 4.0}, False, torch.float32, 0)
    plain, scaled = meaning(lora)[0], meaning(convert_lora(lora, default_alpha=8.0)[0])[0]
    name = "transformer.single_transformer_blocks.3.attn."
    torch.testing.assert_close(scaled[f"{name}to_q"], 2 * plain[f"{name}to_q"])
    torch.testing.assert_close(scaled[f"{name}to_k"], plain[f"{name}to_k"])


def test_metadata_that_contradicts_the_tensors_shows_both():
    file = make("diffusers_peft_meta")
    wrong = {
        "lora_adapter_metadata": file.metadata["lora_adapter_metadata"].replace(
            '"transformer.r": ', '"transformer.r": 9'
        )
    }
    with pytest.raises(LoRAError, match=r"contradicts the tensors.*rank 9\d.*have rank \d"):
        convert_lora(file.state_dict, metadata=wrong)
    assert_same(meaning(convert_lora(file.state_dict, metadata={})[0]), meaning(file.state_dict))


def test_unknown_keys_are_listed_with_the_closest_format(caplog):
    file = make("kohya")
    odd = {f"lora_unet_double_blocks_{i}_other.lora_down.weight": torch.zeros(4, D) for i in range(12)}
    with pytest.raises(UnknownLoRAKeysError, match=r"12 of \d+ keys.*and 2 more.*'kohya'") as caught:
        convert_lora({**file.state_dict, **odd})
    assert len(caught.value.keys) == 12
    converted, _ = convert_lora({**file.state_dict, **odd}, strict=False)
    assert "12 of" in caplog.text
    assert_bit_equal(converted, convert_lora(file.state_dict)[0])


def test_a_qwen_image_lora_with_names_of_flux_is_named():
    lora = {}
    for index in (0, 59):
        lora[f"transformer.transformer_blocks.{index}.attn.to_q.lora_A.weight"] = torch.zeros(2, 3072)
        lora[f"transformer.transformer_blocks.{index}.attn.to_q.lora_B.weight"] = torch.ones(3072, 2)
    with pytest.raises(ForeignLoRAError, match="Qwen-Image"):
        convert_lora(lora)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": torch.ones(2)}, "single number"),
        ({"alpha": torch.tensor(float("nan"))}, "between 1e-30"),
        ({"lora_A.weight": torch.full((4, D), float("inf"))}, "NaN or infinite"),
        ({"lora_A.weight": "text"}, "expected a tensor"),
        ({"lora_A.weight": torch.zeros(0, D), "lora_B.weight": torch.zeros(D, 0)}, "rank 0"),
        ({"diff": torch.zeros(D, D)}, "several updates"),
        ({"lokr_w1": torch.zeros(2, 2)}, "incomplete LoKr"),
    ],
)
def test_layers_that_make_no_sense_are_refused(change, message):
    name = "transformer.transformer_blocks.0.attn.to_q"
    lora = {f"{name}.lora_A.weight": torch.ones(4, D), f"{name}.lora_B.weight": torch.ones(D, 4)}
    lora |= {f"{name}.{part}": value for part, value in change.items()}
    with pytest.raises(LoRAError, match=message):
        convert_lora(lora)


@pytest.mark.parametrize("to", ["sdxl", "", None, 3])
def test_unknown_layouts_are_refused(to):
    with pytest.raises(LoRAError, match="written as one of"):
        convert_lora(make("kohya").state_dict, to)


# Formats whose default file has the same keys as another's.
AMBIGUOUS = {"onetrainer_kohya": "kohya", "diffusers_old": "diffusers_old_alpha"}


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_named(format):
    file = make(format)
    found = detect_lora_format(file.state_dict, file.metadata)
    assert found in {format, AMBIGUOUS.get(format)}


def test_only_the_keys_are_needed_to_name_a_format():
    assert detect_lora_format({"lora_unet_single_blocks_0_linear1.lora_down.weight": torch.empty(1, device="meta")})
    assert detect_lora_format({"something": torch.zeros(1)}) == "unknown"
    mixed = {**make("kohya").state_dict, **make("xlabs").state_dict}
    assert detect_lora_format(mixed) == "kohya + xlabs"


def test_order_of_keys_does_not_matter():
    file = make("onetrainer_bfl_split")
    reverse = dict(reversed(file.state_dict.items()))
    assert_bit_equal(
        dict(sorted(convert_lora(reverse)[0].items())), dict(sorted(convert_lora(file.state_dict)[0].items()))
    )


def test_embeddings_travel_with_the_file():
    embedding = {"bundle_emb.sks.clip_l": torch.randn(2, 8, generator=seeded())}
    for to in LAYOUTS:
        converted, _ = convert_lora({**make("kohya").state_dict, **embedding}, to)
        assert_bit_equal({key: converted[key] for key in embedding}, embedding)


def test_strict_false_leaves_out_what_a_layout_cannot_hold(caplog):
    file = make("diffusers_te_flat")
    with pytest.raises(UnsupportedLoRAError, match="belongs to a text encoder"):
        convert(file, "diffsynth")
    converted, header = convert(file, "diffsynth", strict=False)
    assert "left out" in caplog.text
    kept = {name: value for name, value in file.expected.items() if name.startswith("transformer.")}
    assert_same(meaning(converted, header), (kept, {}, {}))


@pytest.mark.parametrize("first", ["xlabs", "xlabs_prefixed", "diffusers_peft"])
def test_attention_becomes_xlabs_layout_and_back(first):
    file = make(first, "only_attention" if first == "diffusers_peft" else "default")
    written, header = convert(file, "xlabs")
    assert detect_lora_format(written) == "xlabs"
    assert_same(meaning(written, header), expected_of(file))
    for to in LAYOUTS:
        there, metadata = convert_lora(written, to, header)
        assert_same(meaning(there, metadata), expected_of(file))
    if first == "xlabs":
        assert_bit_equal(written, file.state_dict)


def test_xlabs_layout_refuses_other_layers_by_name():
    file = make("kohya")
    with pytest.raises(UnsupportedLoRAError, match="'xlabs' cannot hold .* `transformer_blocks.*` has no name in it"):
        convert(file, "xlabs")
    written, _ = convert(file, "xlabs", strict=False)
    assert all(".processor." in key for key in written)
