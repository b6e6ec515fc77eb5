"""What PEFT saves, with every option of its configs, means here what it means to PEFT."""

import json

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file

from diffusers_flux_ext import FluxConditionedPipeline, LoRAError, convert_lora, detect_lora_format
from diffusers_flux_ext.lora.files import open_lora
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from tests.lora.lora_evaluation import assert_same, meaning


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TARGETS = ["to_q", "add_v_proj", "proj_mlp", "proj_out", "norm1.linear", "x_embedder"]
ALPHAS = {"single_transformer_blocks.0.proj_out": 3, "proj_out": 5, "^x_embedder": 1}
RANKS = {"^transformer_blocks.0.attn.to_q": 6, "proj_mlp": 1, "norm1.linear": 2}
PATTERNS = {"rank_pattern": RANKS, "alpha_pattern": ALPHAS}
ADALORA = {"init_r": 6, "target_r": 2, "total_step": 10}
CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=6),
    "lora_patterns": LoraConfig(r=4, lora_alpha=6, **PATTERNS),
    "lora_rslora": LoraConfig(r=4, lora_alpha=6, use_rslora=True, **PATTERNS),
    "lora_mute": LoraConfig(r=4, lora_alpha=6, alpha_pattern={"proj_mlp": 0}),
    "lora_gaussian": LoraConfig(r=4, lora_alpha=2, init_lora_weights="gaussian"),
    "lora_orthogonal": LoraConfig(r=4, lora_alpha=2, init_lora_weights="orthogonal"),
    "lora_mica": LoraConfig(r=4, lora_alpha=2, init_lora_weights="mica"),
    "lora_parameters": LoraConfig(r=4, lora_alpha=6, target_parameters=["ff.net.0.proj.weight", "to_k.weight"]),
    "lora_fan_in_fan_out": LoraConfig(r=4, lora_alpha=2, fan_in_fan_out=True),
    "loha": LoHaConfig(r=2, alpha=5),
    "loha_patterns": LoHaConfig(r=4, alpha=6, **PATTERNS),
    "loha_conv": LoHaConfig(r=2, alpha=3, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=5),
    "lokr_both": LoKrConfig(r=2, alpha=5, decompose_both=True),
    "lokr_factor": LoKrConfig(r=1, alpha=5, decompose_both=True, decompose_factor=8),
    "lokr_full": LoKrConfig(r=64, alpha=16, decompose_factor=4),
    "lokr_full_mute": LoKrConfig(r=64, alpha=16, decompose_factor=4, alpha_pattern={"proj_mlp": 0}),
    "lokr_half_full": LoKrConfig(r=6, alpha=16, decompose_factor=2),
    "lokr_conv": LoKrConfig(r=2, alpha=3, use_effective_conv2d=True, rank_dropout_scale=True),
    "lokr_patterns": LoKrConfig(r=4, alpha=6, decompose_both=True, **PATTERNS),
    "adalora": AdaLoraConfig(lora_alpha=5, **ADALORA),
    "adalora_no_alpha": AdaLoraConfig(lora_alpha=-1, **ADALORA),
    "adalora_pruned": AdaLoraConfig(lora_alpha=5, **ADALORA),
    "adalora_pruned_no_alpha": AdaLoraConfig(lora_alpha=-1, **ADALORA),
}  # fmt: skip


def save_adapter(config, folder, targets=TARGETS):
    """Saves an adapter of random numbers with PEFT."""
    config.target_modules = list(targets)
    model = get_peft_model(tiny_transformer(0), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if model.base_model.prefix in name and "ranknum" not in name:
                value.copy_(torch.randn(value.shape, generator=generator))
    if "pruned" in folder.name:
        # As training leaves it: a few ranks of every layer, none of the last.
        masks = [name.removeprefix("base_model.model.") for name, _ in model.named_parameters() if "lora_E" in name]
        kept = {name: [i in (1, 4) for i in range(6)] for name in masks}
        config.rank_pattern = {**kept, masks[-1]: [False] * 6}
    model.save_pretrained(folder)


def merged_difference(folder):
    """What merging the saved adapter with PEFT changes."""
    base = tiny_transformer(0)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    return {f"transformer.{name.removesuffix('.weight')}": merged[name] - before[name] for name in before}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tuner_is_read_as_peft_merges_it(tmp_path, name):
    folder = tmp_path / name
    save_adapter(CONFIGS[name], folder)
    expected = {layer: delta for layer, delta in merged_difference(folder).items() if delta.any()}
    assert len(expected) > 5
    opened = open_lora(folder)
    assert_same(meaning(opened.tensors, None, opened.adapter_config), (expected, {}, {}), 2e-6)
    # The scale has to survive where no config goes along.
    assert_same(meaning(*convert_lora(folder, "kohya")), (expected, {}, {}), 5e-6)


@pytest.mark.parametrize("options", [{"use_dora": True, "use_rslora": True}, {"lora_bias": True}])
def test_magnitudes_and_biases_are_applied_as_peft_merges_them(tmp_path, options):
    config = LoraConfig(r=4, lora_alpha=6, **options)
    save_adapter(config, tmp_path)
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    found, base = pipe.transformer.state_dict(), tiny_transformer(0).state_dict()
    for layer, delta in merged_difference(tmp_path).items():
        key = layer.removeprefix("transformer.")
        key = key if key in base else f"{key}.weight"
        assert torch.allclose(found[key] - base[key], delta, atol=2e-5, rtol=1e-4), layer


def test_adalora_has_its_name_and_needs_its_config(tmp_path):
    save_adapter(CONFIGS["adalora"], tmp_path)
    assert detect_lora_format(tmp_path) == "peft_adalora"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    with pytest.raises(LoRAError, match="adapter_config"):
        convert_lora(tensors)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    raw = {f"{key.removeprefix('base_model.model.')}.default": value for key, value in tensors.items()}
    for one, other in zip(meaning(raw, None, config), meaning(tensors, None, config), strict=True):
        assert_same([one], [other], 0)
    with pytest.raises(LoRAError, match="init_r"):
        convert_lora(tensors, adapter_config={**config, "init_r": None})
    key = next(key for key in tensors if key.endswith("lora_E"))
    with pytest.raises(LoRAError, match="one `lora_E` a rank"):
        convert_lora({**tensors, key: torch.ones(5, 1)}, adapter_config=config)


@pytest.mark.parametrize(
    "config, name",
    [
        (VeraConfig(r=2), "VeRA|VERA"),
        (BOFTConfig(boft_block_size=4), "BOFT"),
        (OFTConfig(r=0, oft_block_size=8), "OFT"),
        (HRAConfig(r=2), "HRA"),
        (FourierFTConfig(n_frequency=10), "FOURIERFT"),
    ],
)
def test_other_tuners_are_named(tmp_path, config, name):
    save_adapter(config, tmp_path, ["to_q"])
    with pytest.raises(LoRAError, match=name):
        convert_lora(tmp_path)
    with pytest.raises(LoRAError, match=name):
        convert_lora(load_file(tmp_path / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    "option, name",
    [
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "base weights"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"peft_type": "XLORA"}, "XLORA"),
    ],
)
def test_options_that_make_a_lora_more_than_an_update_are_refused(tmp_path, option, name):
    save_adapter(CONFIGS["lora"], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    with pytest.raises(LoRAError, match=name):
        convert_lora(tmp_path, adapter_config={**config, **option})


def test_pissa_that_was_saved_for_the_unchanged_weights_is_read(tmp_path):
    model = get_peft_model(tiny_transformer(0), LoraConfig(r=4, init_lora_weights="pissa", target_modules=["to_q"]))
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.mul_(1.5)
    with pytest.raises(LoRAError, match="pissa"):
        convert_lora(tmp_path / "start")
    model.save_pretrained(tmp_path / "saved", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    expected = {layer: delta for layer, delta in merged_difference(tmp_path / "saved").items() if delta.any()}
    opened = open_lora(tmp_path / "saved")
    assert_same(meaning(opened.tensors, None, opened.adapter_config), (expected, {}, {}), 1e-5)
