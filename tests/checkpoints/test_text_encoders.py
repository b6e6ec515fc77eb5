"""CLIP and T5 from single files: transformers', ComfyUI's and llama.cpp's names, scaled fp8, GGUF."""

import json

import pytest
import torch
from diffusers import GGUFQuantizationConfig, QuantoConfig
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from benchmarks.support.single_files import clip_in_a_file, scaled_fp8, t5_of_llama_cpp, write_gguf
from diffusers_flux_ext.checkpoints.text_encoders import read_clip, read_t5
from diffusers_flux_ext.testing import tiny_text_encoder, tiny_text_encoder_2
from diffusers_flux_ext.testing.weights import randomise


IDS = torch.tensor([[3, 40, 7, 12, 621, 621]])
HEADS = {"num_attention_heads": 2}
DISTANCE = {"relative_attention_max_distance": 16}
COMFY_CLIP, COMFY_T5 = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."


@pytest.fixture(scope="module")
def clip():
    return tiny_text_encoder(0)


@pytest.fixture(scope="module")
def t5():
    return tiny_text_encoder_2(0)


def pooled(model):
    with torch.no_grad():
        return model(IDS).pooler_output


def states(model, ids=IDS % 80):
    with torch.no_grad():
        return model(ids).last_hidden_state


@pytest.mark.parametrize("prefix", ["", COMFY_CLIP, "cond_stage_model.transformer.", "conditioner.embedders.0."])
def test_clip_under_every_prefix(clip, tmp_path, prefix):
    weights = clip_in_a_file(clip, prefix)
    weights |= {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None], f"{prefix}logit_scale": IDS}
    weights |= {f"{prefix}text_projection.weight": torch.zeros(24, 24), "vision_model.a.weight": torch.zeros(2)}
    save_file(weights, tmp_path / "x.safetensors")
    model = read_clip(tmp_path / "x.safetensors", **HEADS)
    assert torch.equal(pooled(model), pooled(clip))
    assert not model.training


def test_clip_of_a_folder_needs_nothing(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    assert torch.equal(pooled(read_clip(tmp_path / "model.safetensors")), pooled(clip))
    assert torch.equal(pooled(read_clip(tmp_path)), pooled(clip))
    assert read_clip(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_clip_is_copied(clip):
    model = read_clip(clip.state_dict(), **HEADS)
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert torch.equal(pooled(read_clip(clip.state_dict(), **HEADS)), pooled(clip))


def test_heads_of_clip_are_asked_for(clip):
    with pytest.raises(ValueError, match=r"24 wide.*Pass `num_attention_heads`.*config.json"):
        read_clip(clip_in_a_file(clip))


def test_two_clips_need_a_prefix(clip):
    weights = clip_in_a_file(clip, "text_encoders.clip_g.") | clip_in_a_file(clip, "text_encoders.clip_l.")
    with pytest.raises(ValueError, match=r"several of a CLIP text model.*clip_g.*clip_l.*`prefix=`"):
        read_clip(weights, **HEADS)
    assert torch.equal(pooled(read_clip(weights, prefix="text_encoders.clip_l.", **HEADS)), pooled(clip))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text_model.final_layer_norm.bias": None}, r"lacks `final_layer_norm.bias`"),
        ({"text_model.encoder.layers.0.mlp.fc3.weight": torch.ones(2)}, r"has no place for.*fc3"),
        ({"text_model.encoder.layers.0.mlp.fc1.bias": torch.ones(2)}, r"wrong shape for CLIPTextModel.*fc1.bias"),
        ({"text_model.embeddings.position_embedding.weight": None}, "missing: `embeddings.position_embedding.weight`"),
        ({"text_model.embeddings.token_embedding.weight": torch.ones(4)}, "wrong number of dimensions"),
    ],
)
def test_a_broken_clip(clip, tmp_path, change, message):
    weights = {**clip_in_a_file(clip), **change}
    save_file({key: w for key, w in weights.items() if w is not None}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        read_clip(tmp_path / "x.safetensors", **HEADS)
    assert "x.safetensors" in str(error.value)


@pytest.mark.parametrize("prefix", ["", COMFY_T5])
@pytest.mark.parametrize("left_out", [(), ("shared.weight",), ("encoder.embed_tokens.weight",)])
def test_t5_under_every_prefix(t5, tmp_path, prefix, left_out):
    weights = {prefix + key: w.clone() for key, w in t5.state_dict().items() if key not in left_out}
    weights |= {f"{prefix}decoder.block.0.x.weight": IDS, "spiece_model": IDS + 1}
    save_file(weights, tmp_path / "x.safetensors")
    model = read_t5(tmp_path / "x.safetensors", **DISTANCE)
    assert torch.equal(states(model), states(t5))
    assert model.encoder.embed_tokens.weight is model.shared.weight


def test_t5_of_a_folder_in_several_files(t5, tmp_path):
    t5.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(states(read_t5(tmp_path)), states(t5))


def test_distances_of_t5_are_asked_for(t5):
    with pytest.raises(ValueError, match=r"8 buckets.*Pass `relative_attention_max_distance`"):
        read_t5(t5.state_dict())


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_scaled_fp8(t5, tmp_path, scale):
    prefixed = {COMFY_T5 + key: w for key, w in t5.state_dict().items() if "embed_tokens" not in key}
    stored, meant = scaled_fp8(prefixed, COMFY_T5, scale)
    save_file(stored, tmp_path / "x.safetensors")
    model = read_t5(tmp_path / "x.safetensors", torch_dtype=torch.float32, **DISTANCE)
    expected = read_t5(meant, torch_dtype=torch.float32, **DISTANCE)
    assert torch.equal(states(model), states(expected))
    assert (states(model) - states(t5)).abs().max() < 0.2 * states(t5).abs().max()


def test_scales_without_weights_and_of_other_formats(t5):
    stored, _ = scaled_fp8(t5.state_dict())
    with pytest.raises(ValueError, match=r"have no weight beside them: `x.scale_weight`"):
        read_t5({**stored, "x.scale_weight": torch.ones(())}, **DISTANCE)
    key = "encoder.block.0.layer.0.SelfAttention.q."
    with pytest.raises(ValueError, match="are not single numbers"):
        read_t5({**stored, f"{key}scale_weight": torch.ones(3)}, **DISTANCE)
    made = torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"comfy_quant.*'nvfp4', which is not read.*float8_e4m3fn"):
        read_t5({**stored, f"{key}comfy_quant": made}, **DISTANCE)


SIZES = {"d_model": 64, "d_kv": 8, "d_ff": 96, "num_heads": 4, "num_layers": 2, "vocab_size": 87}


@pytest.fixture(scope="module")
def wide_t5():
    """Rows of 64 and 96 numbers are whole blocks of GGUF."""
    model = randomise(T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **SIZES)), 3)
    model.encoder.embed_tokens.weight = model.shared.weight
    return model


@pytest.fixture(scope="module")
def t5_gguf(wide_t5, tmp_path_factory):
    pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("t5") / "t5.gguf"
    return write_gguf(path, t5_of_llama_cpp(wide_t5), architecture="t5encoder")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_packed_t5_is_the_unpacked_one(wide_t5, t5_gguf, dtype, tolerance):
    unpacked = read_t5(t5_gguf, torch_dtype=dtype)
    packed = read_t5(t5_gguf, quantization_config=GGUFQuantizationConfig(compute_dtype=dtype))
    ids, largest = torch.arange(9)[None], states(wide_t5).abs().max()
    assert packed.dtype == dtype
    assert (states(packed, ids) - states(unpacked, ids)).abs().max() < tolerance * largest
    assert 0 < (states(packed, ids) - states(wide_t5, ids)).abs().max() < 0.1 * largest
    block = packed.encoder.block[1].layer
    assert type(block[0].SelfAttention.q).__name__ == type(block[1].DenseReluDense.wo).__name__ == "GGUFLinear"
    sizes = [sum(w.nbytes for w in model.parameters()) for model in (packed, unpacked)]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_gguf_file_in_transformers_names(wide_t5, tmp_path):
    pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "x.gguf", {k: w for k, w in wide_t5.state_dict().items() if "embed_t" not in k})
    assert (states(read_t5(path)) - states(wide_t5)).abs().max() < 0.1 * states(wide_t5).abs().max()


def test_a_quantisation_config_that_does_not_fit(wide_t5, t5_gguf):
    with pytest.raises(ValueError, match=r"QuantoConfig; expected `GGUFQuantizationConfig`"):
        read_t5(t5_gguf, quantization_config=QuantoConfig(weights_dtype="int8"))
    with pytest.raises(ValueError, match="GGUF files with packed weights"):
        read_t5(wide_t5.state_dict(), quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32))


@pytest.mark.parametrize("read, what", [(read_clip, "CLIP text model"), (read_t5, "T5 encoder")])
def test_files_of_something_else(read, what, tmp_path):
    save_file({"x.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x.safetensors.*no {what} among the keys `x.weight`"):
        read(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="missing.safetensors"):
        read(tmp_path / "missing.safetensors")


def test_weights_in_eight_bits_become_computable(clip):
    weights = {key: w.to(torch.float8_e4m3fn) for key, w in clip_in_a_file(clip).items()}
    assert {w.dtype for w in read_clip(weights, **HEADS).parameters()} == {torch.bfloat16}
