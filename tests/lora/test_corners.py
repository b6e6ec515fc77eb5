"""Corners of LoRA files and of loading them, each of which once went wrong."""

import json

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from safetensors.torch import save_file

from benchmarks.support.lora_files import make
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    LoRAError,
    convert_lora,
    convert_lora_file,
    fuse_lora_into,
    load_lora,
    merge_loras,
    resize_lora,
    unload_lora,
)
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.lora.loading.load import active_weights
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from tests.lora.loading.test_load import picture, weights_of
from tests.lora.lora_evaluation import assert_bit_equal, meaning


LAYER = "transformer.transformer_blocks.0.attn.to_q"
PAIR = {f"{LAYER}.lora_A.weight": torch.ones(2, 32), f"{LAYER}.lora_B.weight": torch.ones(32, 2)}
NORM = {"transformer.transformer_blocks.0.attn.norm_q.diff": torch.full((16,), 0.5)}
KRON = {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 8)}


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"set_weight": torch.ones(32, 32)}, "Only norms can be replaced"),
        ({**KRON, "lokr_t2": torch.ones(2, 2)}, "not one of a Linear"),
        ({**KRON, "lokr_w1_a": torch.ones(4, 1)}, "not one of a Linear"),
        ({"dora_scale": torch.ones(7)}, "do not chain"),
        ({"diff": torch.ones(32)}, "not that of a weight"),
        ({"alpha": torch.ones(1, dtype=torch.complex64)}, "plain numbers"),
        ({"alpha": torch.ones(1, device="meta")}, "plain numbers"),
    ],
)
def test_parts_without_a_meaning_are_refused(parts, message):
    base = {} if "diff" in parts or "lokr_w1" in parts else PAIR
    with pytest.raises(LoRAError, match=message):
        convert_lora({**base, **{f"{LAYER}.{part}": value for part, value in parts.items()}})


@pytest.mark.parametrize("part", ["lora_time_gamma.weight", "oft_blocks", "a2.weight"])
def test_updates_that_depend_on_more_are_refused_everywhere(part):
    lora = {**PAIR, f"{LAYER}.{part}": torch.ones(2, 2)}
    for work in (
        lambda: fuse_lora_into(tiny_transformer(0).state_dict(), lora),
        lambda: merge_loras([lora, PAIR]),
        lambda: resize_lora(lora, rank=1),
        lambda: tiny_pipeline(FluxConditionedPipeline).load_lora_weights(lora),
    ):
        with pytest.raises(LoRAError, match="depends on|multiplies"):
            work()


def test_numbers_that_are_not_finite_are_refused_everywhere(tmp_path):
    bad = {**PAIR, f"{LAYER}.lora_A.weight": torch.full((2, 32), float("nan"))}
    pipe, weights = tiny_pipeline(FluxConditionedPipeline), tiny_transformer(0).state_dict()
    for work in (
        lambda: load_lora(pipe, bad),
        lambda: load_lora(pipe, PAIR, weight=float("nan")),
        lambda: fuse_lora_into(weights, bad),
        lambda: fuse_lora_into(weights, PAIR, weights=float("inf")),
        lambda: merge_loras([bad]),
        lambda: resize_lora(bad, rank=1),
        lambda: resize_lora(bad, rank=1, strict=False),
        lambda: convert_lora(PAIR, default_alpha=float("nan")),
        lambda: convert_lora({name: value * 1e30 for name, value in PAIR.items()}, dtype=torch.float16),
        lambda: convert_lora_file(PAIR, tmp_path / "x.safetensors", metadata={"epoch": 3}),
    ):
        with pytest.raises(LoRAError):
            work()
    assert not list(tmp_path.iterdir())


def test_a_muted_lora_does_not_mute_a_merged_bias():
    bias = {f"{LAYER}.diff_b": torch.ones(32)}
    assert torch.equal(meaning(*merge_loras([PAIR, bias], [0.0, 1.0]))[1][LAYER], torch.ones(32).double())


def test_merged_files_keep_embeddings():
    embedding = {"bundle_emb.sks.clip_l": torch.ones(1, 8)}
    assert "bundle_emb.sks.clip_l" in merge_loras([{**PAIR, **embedding}, PAIR]).state_dict


@pytest.mark.parametrize("to", ["kohya", "diffsynth"])
def test_a_rank_is_the_rank_of_fused_layers_too(to):
    files = [make("diffusers_peft", seed=seed).state_dict for seed in (0, 1)]
    for result in (resize_lora(files[0], rank=2, to=to), merge_loras(files, rank=2, to=to)):
        assert max(value.shape[0] for key, value in result.state_dict.items() if "down" in key or "lora_A" in key) == 2


@pytest.mark.parametrize("header", ['{"r": NaN, "lora_alpha": 1}', '{"r": 2, "lora_alpha": 1%s}' % ("0" * 400)])
def test_numbers_of_the_header_have_a_range(header):
    with pytest.raises(LoRAError):
        convert_lora(PAIR, metadata={"lora_adapter_metadata": header})


def test_the_config_of_another_file_is_not_taken(tmp_path):
    save_file(PAIR, tmp_path / "other.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 64}))
    assert not any(key.endswith(".alpha") for key in convert_lora(tmp_path / "other.safetensors")[0])
    assert any(key.endswith(".alpha") for key in convert_lora(tmp_path)[0])


def test_links_stay_links(tmp_path):
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    save_file(PAIR, real)
    link.symlink_to(real)
    convert_lora_file(link, link, "kohya", overwrite=True)
    assert link.is_symlink()
    assert convert_lora(real, "kohya")[0].keys() == convert_lora(link, "kohya")[0].keys()


def test_json_has_no_nan(tmp_path, capsys):
    save_file({**PAIR, f"{LAYER}.lora_A.weight": torch.full((2, 32), float("nan"))}, tmp_path / "x.safetensors")
    assert main(["lora", "inspect", str(tmp_path / "x.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["norms"]["transformer_blocks.0"] is None


def test_adapters_of_norms_alone_are_adapters():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before, plain = weights_of(pipe), picture(pipe)
    load_lora(pipe, NORM, "norm", 0.5)
    shifted = picture(pipe)
    load_lora(pipe, PAIR, "pair", 0.0)
    assert torch.equal(picture(pipe), shifted)
    assert active_weights(pipe.transformer) == {"norm": 0.5, "pair": 0.0}
    pipe.delete_adapters("pair")
    assert torch.equal(picture(pipe), shifted)
    pipe.set_adapters("norm", 0.0)
    assert torch.equal(picture(pipe), plain)
    pipe.set_adapters(["norm"], [0.5])
    pipe.disable_lora()
    assert torch.equal(picture(pipe), plain)
    pipe.enable_lora()
    assert torch.equal(picture(pipe), shifted)
    pipe.unload_lora_weights()
    assert_bit_equal(weights_of(pipe), before)


def test_weights_of_single_models_survive_another_load():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights(make("kohya", "with_clip").state_dict, "a")
    pipe.set_adapters("a", {"transformer": 0.2, "text_encoder": 0.3})
    load_lora(pipe, make("xlabs").state_dict, "b")
    assert active_weights(pipe.transformer) == pytest.approx({"a": 0.2, "b": 1.0})
    assert active_weights(pipe.text_encoder) == pytest.approx({"a": 0.3})


def test_a_loaded_adapter_is_the_only_active_one():
    pipe, fresh = tiny_pipeline(FluxConditionedPipeline), tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights({**make("kohya", "with_clip").state_dict}, "a")
    for one in (pipe, fresh):
        one.load_lora_weights(make("xlabs").state_dict, "b")
    assert torch.equal(picture(pipe), picture(fresh))


def test_hotswap_refuses_what_it_would_leave_behind():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights({**PAIR, **NORM}, "a")
    with pytest.raises(LoRAError, match="swapped in place"):
        pipe.load_lora_weights(PAIR, "a", hotswap=True)
    with pytest.raises(LoRAError, match="swapped in place"):
        pipe.load_lora_weights(PAIR, "unknown", hotswap=True)


def test_fused_loras_become_part_of_the_model_or_stay_whole():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    load_lora(pipe, {**PAIR, **NORM}, "a")
    load_lora(pipe, make("kohya").state_dict, "b")
    strong = picture(pipe)
    pipe.fuse_lora()
    with pytest.raises(LoRAError, match="unfuse_lora"):
        unload_lora(pipe, "a")
    pipe.unload_lora_weights()
    torch.testing.assert_close(picture(pipe), strong, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "parts",
    [
        {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.ones(7)},
        {"transformer.transformer_blocks.0.attn.norm_q.diff_b": torch.ones(16)},
        {"transformer.x_embedder.diff": torch.ones(32, 128)},
    ],
)
def test_a_load_that_fails_leaves_nothing(parts):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before = weights_of(pipe)
    with pytest.raises(LoRAError):
        pipe.load_lora_weights({**PAIR, **parts}, "a")
    assert not pipe.get_list_adapters()
    assert_bit_equal(weights_of(pipe), before)
    pipe.load_lora_weights(PAIR, "a")


@pytest.mark.parametrize("name", ["keys", "items", "pop"])
def test_names_that_modules_cannot_have(name):
    with pytest.raises(LoRAError, match="not a method"):
        tiny_pipeline(FluxConditionedPipeline).load_lora_weights(PAIR, name)


def test_a_missing_file_is_no_repository():
    with pytest.raises(LoRAError, match="There is no file"):
        tiny_pipeline(FluxConditionedPipeline).load_lora_weights("loras/style.safetensors")


def test_a_subfolder_of_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    save_file(make("xlabs").state_dict, tmp_path / "root.safetensors")
    save_file(PAIR, tmp_path / "sub" / "pair.safetensors")
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights(str(tmp_path), subfolder="sub")
    assert len([name for name, module in pipe.transformer.named_modules() if hasattr(module, "lora_A")]) == 1


@pytest.mark.parametrize("format", ["onetrainer_dora", "aitoolkit_dora", "kohya_lokr"])
def test_other_products_under_eight_bit_storage_and_bfloat16(format):
    pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    pipe.load_lora_weights(make(format).state_dict)
    assert picture(pipe).isfinite().all()


def test_dora_while_the_weights_are_away():
    pipe, plain = tiny_pipeline(FluxConditionedPipeline), tiny_pipeline(FluxConditionedPipeline)
    for one in (pipe, plain):
        one.load_lora_weights(make("onetrainer_dora").state_dict)
    cpu_offload(pipe.transformer, torch.device("cpu"))
    assert next(pipe.transformer.parameters()).is_meta
    torch.testing.assert_close(picture(pipe), picture(plain))
    remove_hook_from_submodules(pipe.transformer)


def test_a_warning_of_a_lost_alpha(caplog):
    header = {"ss_network_alpha": "1", "ss_network_dim": "32"}
    load_lora(tiny_pipeline(FluxConditionedPipeline), make("kohya_noalpha").state_dict, metadata=header)
    assert "default_alpha=1" in caplog.text
    pipe = tiny_pipeline(FluxConditionedPipeline)
    load_lora(pipe, PAIR, default_alpha=1.0)
    assert pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q").scaling["default_0"] == 0.5
