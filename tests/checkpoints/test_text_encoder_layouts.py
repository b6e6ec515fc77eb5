"""CLIP, T5 and SigLIP from single files in every layout."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.diffsynth.models import clip, language_model, prefixed, published_llm, siglip, t5
from diffusers_flux_ext.checkpoints.text_encoder_layouts import CLIP_PREFIX, T5_PREFIX, plan_clip_text
from diffusers_flux_ext.models.text_encoders import load_clip_text, load_qwen_vl, load_siglip, load_t5_encoder


def bare(model):
    return {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}


def key_of(name):
    return next(key for key in clip().state_dict() if key.endswith(name))


def diffsynth_clip():
    """The names of DiffSynth-Studio, spelled by rows of the opposite direction."""
    names = {
        "embeddings.token_embedding": "token_embedding",
        "encoder.layers": "encoders",
        "self_attn.out_proj": "attn.to_out",
        **{f"self_attn.{part}_proj": f"attn.to_{part}" for part in "qkv"},
        "mlp.fc": "fc",
    }
    weights = {}
    for key, tensor in bare(clip()).items():
        if "position_embedding" in key:
            weights["position_embeds"] = tensor[None]
            continue
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        weights[key] = tensor
    return weights


def openai_clip():
    weights, given = {}, bare(clip())
    names = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    names |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "encoder.layers": "transformer.resblocks"}
    names |= {"final_layer_norm": "ln_final", "embeddings.token_embedding": "token_embedding"}
    for key, tensor in given.items():
        if "position_embedding" in key:
            weights["positional_embedding"] = tensor
        elif "q_proj" in key:
            parts = [given[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            block, kind = key.split(".")[2], key.rpartition(".")[2]
            weights[f"transformer.resblocks.{block}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif "k_proj" not in key and "v_proj" not in key:
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            weights[key] = tensor
    return weights | {"text_projection": torch.ones(3, 3), "logit_scale": torch.ones(())}


CLIPS = {
    "transformers": lambda: prefixed(clip(), "text_model."),
    "without prefix": lambda: bare(clip()),
    "whole": lambda: (
        prefixed(clip(), "text_model.")
        | {"vision_model.embeddings.class_embedding": torch.ones(3), "logit_scale": torch.ones(())}
        | {"text_projection.weight": torch.ones(3, 3), "visual_projection.weight": torch.ones(3, 3)}
    ),
    "old position ids": lambda: (
        prefixed(clip(), "text_model.") | {"text_model.embeddings.position_ids": torch.arange(77.0)[None]}
    ),
    "ComfyUI": lambda: (
        {f"{CLIP_PREFIX}transformer.text_model.{key}": w for key, w in bare(clip()).items()}
        | {
            f"{CLIP_PREFIX}logit_scale": torch.ones(()),
            f"{CLIP_PREFIX}transformer.text_projection.weight": torch.ones(3, 3),
        }
    ),
    "DiffSynth-Studio": diffsynth_clip,
    "OpenAI": openai_clip,
}


@pytest.mark.parametrize("layout", CLIPS)
def test_clip(layout, tmp_path):
    save_file(
        {key: tensor.contiguous().clone() for key, tensor in CLIPS[layout]().items()}, tmp_path / "clip.safetensors"
    )
    model = load_clip_text(tmp_path / "clip.safetensors")
    ids = torch.tensor([[1, 5, 621, 3]])
    assert not model.training
    for key, weight in clip().state_dict().items():
        assert torch.equal(model.state_dict()[key], weight)
    torch.testing.assert_close(model(ids).pooler_output, clip()(ids).pooler_output, atol=1e-4, rtol=0)


def test_clip_in_another_type():
    model = load_clip_text({key: tensor.half() for key, tensor in CLIPS["transformers"]().items()})
    assert model.dtype == torch.float16
    assert load_clip_text(CLIPS["transformers"](), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    eight = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in CLIPS["transformers"]().items()}
    assert load_clip_text(eight).dtype == torch.bfloat16
    mixed = {**eight, "text_model.final_layer_norm.weight": clip().state_dict()[key_of("final_layer_norm.weight")]}
    assert load_clip_text(mixed).dtype == torch.float32


T5S = {
    "transformers": lambda: dict(t5().state_dict()),
    "without the second name": lambda: {k: w for k, w in t5().state_dict().items() if "embed_tokens" not in k},
    "with the second name only": lambda: {k: w for k, w in t5().state_dict().items() if k != "shared.weight"},
    "whole": lambda: dict(t5().state_dict()) | {"lm_head.weight": torch.ones(3), "decoder.block.0.x": torch.ones(3)},
    "ComfyUI": lambda: (
        {f"{T5_PREFIX}transformer.{key}": w for key, w in t5().state_dict().items()}
        | {f"{T5_PREFIX}logit_scale": torch.ones(())}
    ),
}


@pytest.mark.parametrize("layout", T5S)
def test_t5(layout):
    model = load_t5_encoder(T5S[layout](), torch_dtype=torch.float32)
    for key, weight in t5().state_dict().items():
        assert torch.equal(model.state_dict()[key], weight)
    ids = torch.tensor([[4, 5, 6, 1, 0, 0]])
    torch.testing.assert_close(model(ids).last_hidden_state, t5()(ids).last_hidden_state, atol=1e-4, rtol=0)
    # Not the tensors of the source.
    assert model.shared.weight.data_ptr() != t5().shared.weight.data_ptr()


def test_siglip():
    weights = prefixed(siglip(16), "vision_model.")
    pixels = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    for given in (
        weights,
        weights | {"text_model.x": torch.ones(3), "logit_scale": torch.ones(()), "logit_bias": torch.ones(())},
    ):
        model = load_siglip(given)
        expected = siglip(16)(pixels).pooler_output
        torch.testing.assert_close(model(pixels).pooler_output, expected, atol=1e-4, rtol=0)


def test_qwen_vl():
    for weights in (published_llm("step1x"), dict(language_model("step1x").state_dict())):
        model = load_qwen_vl(weights)
        for key, weight in language_model("step1x").state_dict().items():
            assert torch.equal(model.state_dict()[key], weight)
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(model(ids).logits, language_model("step1x")(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "load, weights, words",
    [
        (
            load_clip_text,
            {"x.weight": torch.ones(2)},
            r"not a file of CLIP's text model in any known layout.*`x\.weight`",
        ),
        (
            load_clip_text,
            {**CLIPS["transformers"](), "text_model.extra": torch.ones(2)},
            "does not have.*`text_model.extra`",
        ),
        (load_t5_encoder, {**T5S["transformers"](), "encoder.extra": torch.ones(2)}, "`encoder.extra`"),
        (load_t5_encoder, {**T5S["transformers"](), "scaled_fp8": torch.ones(2)}, "scaled 8-bit weights"),
        (load_siglip, prefixed(clip(), "text_model."), "not a file of SigLIP's vision model"),
        (load_qwen_vl, dict(t5().state_dict()), "not a whole Qwen2.5-VL"),
    ],
)
def test_another_file_is_refused(load, weights, words):
    with pytest.raises(ValueError, match=words):
        load(weights)


@pytest.mark.parametrize(
    "load, weights",
    [
        (load_clip_text, CLIPS["transformers"]),
        (load_t5_encoder, T5S["transformers"]),
        (load_siglip, lambda: prefixed(siglip(16), "")),
    ],
)
def test_a_missing_tensor_is_named(load, weights, tmp_path):
    given = weights()
    key = next(
        key
        for key in given
        if "layers.1.mlp.fc2.bias" in key
        or "layers.0.mlp.fc2.bias" in key
        or "block.1.layer.1.DenseReluDense.wo" in key
    )
    given.pop(key)
    save_file({key: tensor.clone() for key, tensor in given.items()}, tmp_path / "cut.safetensors")
    with pytest.raises(
        ValueError, match=r"cut\.safetensors.*missing, surplus.*" + key.rpartition("layer")[2].split(".")[-1]
    ):
        load(tmp_path / "cut.safetensors")


def test_whole_numbers_are_refused():
    given = {key: tensor.to(torch.int8) for key, tensor in CLIPS["transformers"]().items()}
    with pytest.raises(ValueError, match="floating-point"):
        load_clip_text(given)


def test_rows_that_cannot_be_split():
    with pytest.raises(ValueError, match="multiple of 3"):
        plan_clip_text({"transformer.resblocks.0.attn.in_proj_weight": (64, 64), "token_embedding.weight": (9, 64)})
