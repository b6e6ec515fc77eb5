"""Merging, resizing, extracting and fusing LoRAs."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.support.lora_files import make
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    LoRAError,
    convert_lora,
    extract_lora,
    fuse_lora_into,
    merge_loras,
    resize_lora,
)
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict
from diffusers_flux_ext.lora.errors import UnsupportedLoRAError
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline, tiny_transformer
from tests.lora.lora_evaluation import assert_bit_equal, assert_same, meaning


def weighted_sum(files, weights, kind):
    total = {}
    for file, weight in zip(files, weights):
        for name, value in (file.expected, file.expected_bias)[kind].items():
            total[name] = total.get(name, 0) + weight * value
    return total


@pytest.mark.parametrize("to", ["diffusers", "kohya", "bfl", "onetrainer"])
@pytest.mark.parametrize(
    "formats, weights",
    [
        (["kohya", "xlabs", "diffusers_peft_meta"], [1.0, -0.5, 2.0]),
        (["kohya_lokr", "kohya_loha"], [0.3, 1.0]),
        (["aitoolkit_full", "diffusers_peft_bias"], [1.0, 0.7]),
        (["kohya", "kohya"], [0.0, 1.0]),
    ],
)
def test_merging_is_exact(formats, weights, to):
    files = [make(format, seed=seed) for seed, format in enumerate(formats)]
    sources = [convert_lora(file.state_dict, "bfl", file.metadata)[0] for file in files]
    result = merge_loras(sources, weights, to)
    assert result.error == 0
    state_dict, metadata = result
    expected = (weighted_sum(files, weights, 0), weighted_sum(files, weights, 1), {})
    assert_same(meaning(state_dict, metadata), expected, 1e-5)


def test_merging_a_lora_with_itself_does_not_grow():
    file = make("diffusers_peft")
    result = merge_loras([file.state_dict, file.state_dict])
    assert {key: value.shape for key, value in result.state_dict.items()} == {
        key: value.shape for key, value in file.state_dict.items()
    }


def test_merging_to_a_rank_reports_the_error():
    files = [make("diffusers_peft", seed=seed) for seed in (0, 1)]
    exact = meaning(*merge_loras([file.state_dict for file in files]))[0]
    result = merge_loras([file.state_dict for file in files], rank=3)
    found = meaning(*result)[0]
    lost = sum(float((found[name] - value).square().sum()) for name, value in exact.items())
    total = sum(float(value.square().sum()) for value in exact.values())
    assert result.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert max(value.shape[0] for key, value in result.state_dict.items() if "lora_A" in key) == 3


@pytest.mark.parametrize(
    "loras, options, message",
    [
        ([], {}, "0 LoRAs"),
        (["kohya"], {"weights": [1.0, 2.0]}, "one finite number"),
        (["kohya"], {"weights": [float("nan")]}, "one finite number"),
        (["kohya"], {"rank": 0}, "at least 1"),
        (["kohya_dora"], {}, "do not add up"),
        (["bfl_control"], {}, "do not add up"),
    ],
)
def test_what_cannot_be_merged(loras, options, message):
    with pytest.raises(LoRAError, match=message):
        merge_loras([make(format).state_dict for format in loras], **options)


@pytest.mark.parametrize("to", ["diffusers", "kohya", "diffsynth"])
@pytest.mark.parametrize("rank", [1, 2, 99])
def test_resizing_is_the_best_approximation(to, rank):
    file = make("kohya")
    result = resize_lora(file.state_dict, rank=rank, to=to)
    units = meaning(*convert_lora(file.state_dict, to))[0] if to == "diffusers" else None
    found = meaning(*result)[0]
    if rank == 99:
        assert result.error == 0
        assert_same((found, {}, {}), (file.expected, {}, {}))
    if units:
        for name, value in units.items():
            values = torch.linalg.svdvals(value)
            error = float((found[name] - value).norm())
            assert error == pytest.approx(float(values[rank:].norm()), rel=1e-3, abs=1e-5 * float(values[0]))
    assert all(value.shape[0] <= rank for key, value in result.state_dict.items() if "lora_A" in key or "down" in key)


def test_energy_chooses_the_lowest_rank():
    result = resize_lora(make("diffusers_peft").state_dict, energy=0.9)
    exact, found = meaning(make("diffusers_peft").state_dict)[0], meaning(*result)[0]
    for name, value in exact.items():
        assert float((found[name] - value).norm()) <= 0.1**0.5 * float(value.norm()) * 1.001
    assert resize_lora(make("diffusers_peft").state_dict, energy=1.0).error < 1e-6


@pytest.mark.parametrize(
    "options, message", [({}, "Give `rank`"), ({"energy": 0}, r"\(0, 1\]"), ({"rank": -1}, "at least")]
)
def test_resizing_needs_a_size(options, message):
    with pytest.raises(LoRAError, match=message):
        resize_lora(make("kohya").state_dict, **options)


def test_dora_is_not_resized():
    with pytest.raises(UnsupportedLoRAError, match="DoRA"):
        resize_lora(make("kohya_dora").state_dict, rank=1)


@pytest.mark.parametrize("layout", ["diffusers", "bfl", "diffsynth"])
@pytest.mark.parametrize("format", ["kohya", "diffusers_peft", "kohya_lokr", "aitoolkit_full", "bfl_control"])
def test_fusing_adds_the_update_in_the_checkpoints_layout(tmp_path, layout, format):
    base = tiny_transformer(0, in_channels=128, out_channels=64) if format == "bfl_control" else tiny_transformer(0)
    weights, file = base.state_dict(), make(format)
    checkpoint = convert_transformer_state_dict(weights, layout)
    save_file({key: value.contiguous() for key, value in checkpoint.items()}, tmp_path / "base.safetensors")
    fuse_lora_into(tmp_path / "base.safetensors", file.state_dict, tmp_path / "fused.safetensors")
    fused = convert_transformer_state_dict(load_file(tmp_path / "fused.safetensors"), "diffusers")
    assert load_file(tmp_path / "fused.safetensors").keys() == checkpoint.keys()
    for key, value in weights.items():
        name = f"transformer.{key.rpartition('.')[0]}"
        table = file.expected_bias if key.endswith("bias") else file.expected
        wanted = file.expected_norms[name] if name in file.expected_norms else value + table.get(name, 0)
        torch.testing.assert_close(fused[key].double(), wanted.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", ["onetrainer_dora", "kohya_dora"])
def test_fusing_dora_equals_loading_it(format):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    file, checkpoint = make(format), pipe.transformer.state_dict()
    given = {key: value.clone() for key, value in checkpoint.items()}
    fused = fuse_lora_into(checkpoint, file.state_dict, weights=0.7)
    assert_bit_equal(checkpoint, given)
    pipe.load_lora_weights(file.state_dict, "dora")
    pipe.set_adapters("dora", 0.7)
    loaded = pipe(**call_kwargs()).images
    pipe.unload_lora_weights()
    pipe.transformer.load_state_dict(fused)
    torch.testing.assert_close(pipe(**call_kwargs()).images, loaded, atol=1e-4, rtol=1e-3)


def test_fusing_keeps_the_dtype_and_rounds_once():
    weights = {key: value.bfloat16() for key, value in tiny_transformer(0).state_dict().items()}
    file = make("diffusers_peft")
    fused = fuse_lora_into(weights, [file.state_dict, file.state_dict], weights=[0.5, 0.5])
    for key, value in weights.items():
        delta = file.expected.get(f"transformer.{key[:-7]}") if key.endswith(".weight") else None
        wanted = value if delta is None else (value.double() + delta).bfloat16()
        torch.testing.assert_close(fused[key], wanted, atol=1e-7, rtol=2**-7)
        assert fused[key].dtype == torch.bfloat16


def test_fusing_refuses_what_the_checkpoint_lacks(tmp_path):
    weights = tiny_transformer(0).state_dict()
    with pytest.raises(UnsupportedLoRAError, match="text encoders"):
        fuse_lora_into(weights, make("diffusers_te_flat").state_dict)
    assert fuse_lora_into(weights, make("diffusers_te_flat").state_dict, strict=False)
    with pytest.raises(LoRAError, match="no layers"):
        fuse_lora_into(weights, make("kohya", "deep").state_dict)
    with pytest.raises(LoRAError, match="one finite number for each"):
        fuse_lora_into(weights, make("kohya").state_dict, weights=[1.0, 2.0])
    (tmp_path / "here.safetensors").write_text("mine")
    with pytest.raises(LoRAError, match="exists"):
        fuse_lora_into(weights, make("kohya").state_dict, tmp_path / "here.safetensors")


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
@pytest.mark.parametrize("layout", ["diffusers", "bfl"])
def test_extracting_gives_back_what_was_fused(layout, to):
    base, file = tiny_transformer(0).state_dict(), make("diffusers_peft_bias")
    tuned = convert_transformer_state_dict(fuse_lora_into(base, file.state_dict), layout)
    result = extract_lora(base, tuned, rank=8, to=to)
    assert result.error < 1e-4
    assert_same(meaning(*result), (file.expected, file.expected_bias, {}), 1e-4)


def test_extracting_to_a_low_rank_reports_the_error():
    base = tiny_transformer(0).state_dict()
    tuned = {key: value + 0.01 * torch.randn(value.shape, generator=seeded(i)) if value.ndim == 2 else value
             for i, (key, value) in enumerate(base.items())}  # fmt: skip
    errors = [extract_lora(base, tuned, rank=rank).error for rank in (1, 8, 32)]
    assert 0.9 < errors[0] < 1
    assert errors[0] > errors[1] > errors[2]
    with pytest.raises(LoRAError, match="do not differ"):
        extract_lora(base, dict(base), rank=2)
    with pytest.raises(LoRAError, match="differ in"):
        extract_lora(base, tiny_transformer(0, num_layers=1).state_dict(), rank=2)
