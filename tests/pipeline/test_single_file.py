"""Pipelines from single files as they circulate: ComfyUI's checkpoints, scaled fp8, the transformer alone, GGUF."""

import json
import shutil

import pytest
import torch
from diffusers import GGUFQuantizationConfig
from safetensors.torch import save_file

from benchmarks.support.single_files import clip_in_a_file, scaled_fp8, vae_of_black_forest_labs, write_gguf
from diffusers_flux_ext import (
    AutoencoderKLFlux,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    FluxExtTransformer2DModel,
)
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline


AXES = {"axes_dims_rope": (4, 6, 6)}
CLIP, T5 = "text_encoders.clip_l.", "text_encoders.t5xxl."


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    """What people keep beside a file: configs and tokenizers, without weights."""
    path = tmp_path_factory.mktemp("configs")
    pipe.save_pretrained(path)
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        for weights in (path / name).glob("*.safetensors"):
            weights.unlink()
    return path


def parts(pipe, prefix="model.diffusion_model."):
    """The models of a pipeline under ComfyUI's names, by component."""
    transformer = convert_transformer_state_dict(pipe.transformer.state_dict(), to="bfl")
    t5 = {k: w.clone() for k, w in pipe.text_encoder_2.state_dict().items() if "embed_tokens" not in k}
    return {
        "transformer": {prefix + key: weight for key, weight in transformer.items()},
        "text_encoder": clip_in_a_file(pipe.text_encoder, f"{CLIP}transformer.")
        | {f"{CLIP}logit_scale": torch.ones(1)},
        "text_encoder_2": {f"{T5}transformer.{key}": w for key, w in t5.items()} | {f"{T5}logit_scale": torch.ones(2)},
        "vae": vae_of_black_forest_labs(pipe.vae, "vae."),
    }


def write(path, pipe, *names):
    found = parts(pipe)
    save_file({k: w.contiguous() for name in names or found for k, w in found[name].items()}, path)
    return path


def image(pipe):
    return quiet(pipe)(**call_kwargs(num_inference_steps=2)).images


def test_a_file_of_everything(pipe, folder, tmp_path):
    path = write(tmp_path / "flux1-dev-all.safetensors", pipe)
    ours = FluxConditionedPipeline.from_single_file(path, config=folder)
    assert torch.equal(image(ours), image(pipe))
    assert isinstance(ours.transformer, FluxExtTransformer2DModel)
    assert isinstance(ours.vae, AutoencoderKLFlux)
    half = FluxEliGenPipeline.from_single_file(path, config=folder, torch_dtype=torch.bfloat16)
    assert type(half) is FluxEliGenPipeline
    assert {model.dtype for model in (half.transformer, half.vae, half.text_encoder_2)} == {torch.bfloat16}


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_the_transformer_of_such_a_file(pipe, tmp_path, prefix):
    found = parts(pipe, prefix)
    save_file({k: w.contiguous() for name in found for k, w in found[name].items()}, tmp_path / "x.safetensors")
    model = FluxExtTransformer2DModel.from_single_file(tmp_path / "x.safetensors", **AXES)
    expected = pipe.transformer.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_scaled_fp8(pipe, folder, tmp_path, scale):
    stored, meant = {}, {}
    for name, weights in parts(pipe).items():
        if name in ("transformer", "text_encoder_2"):
            prefix = "model.diffusion_model." if name == "transformer" else f"{T5}transformer."
            packed = scaled_fp8(weights, prefix, scale)
        else:
            packed = (weights, weights)
        stored, meant = stored | packed[0], meant | packed[1]
    for name, weights in (("stored", stored), ("meant", meant)):
        save_file({key: weight.contiguous() for key, weight in weights.items()}, tmp_path / f"{name}.safetensors")
    images = [
        image(FluxConditionedPipeline.from_single_file(
            tmp_path / f"{name}.safetensors", config=folder, torch_dtype=torch.float32
        ))
        for name in ("stored", "meant")
    ]  # fmt: skip
    assert torch.equal(*images)
    assert (images[0] - image(pipe)).abs().max() < 0.3
    ours = FluxConditionedPipeline.from_single_file(tmp_path / "stored.safetensors", config=folder)
    assert {weight.dtype for weight in ours.transformer.parameters()} == {torch.bfloat16}


def test_plain_fp8_computes_in_bfloat16(pipe, folder, tmp_path):
    found = {key: weight for weights in parts(pipe).values() for key, weight in weights.items()}
    eight = {key: weight.to(torch.float8_e4m3fn) if weight.ndim == 2 else weight for key, weight in found.items()}
    save_file({key: weight.contiguous() for key, weight in eight.items()}, tmp_path / "x.safetensors")
    ours = FluxConditionedPipeline.from_single_file(tmp_path / "x.safetensors", config=folder)
    assert {weight.dtype for weight in ours.transformer.parameters()} == {torch.bfloat16}
    assert image(ours).isfinite().all()


def test_parts_that_are_given(pipe, tmp_path):
    path = write(tmp_path / "x.safetensors", pipe, "transformer", "vae")
    given = {name: pipe.components[name] for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    transformer = FluxExtTransformer2DModel.from_single_file(path, **AXES)
    vae = AutoencoderKLFlux.from_single_file(path, norm_num_groups=4)
    ours = FluxConditionedPipeline.from_single_file(path, transformer=transformer, vae=vae, **given)
    assert ours.text_encoder_2 is pipe.text_encoder_2
    assert ours.scheduler.config.shift == 3.0
    assert ours.scheduler.config.use_dynamic_shifting
    ours.scheduler = pipe.scheduler
    assert torch.equal(image(ours), image(pipe))


def test_models_of_the_folder_fill_in(pipe, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "folder")
    pipe.text_encoder_2.save_pretrained(tmp_path / "folder" / "text_encoder_2")
    path = write(tmp_path / "x.safetensors", pipe, "transformer", "vae", "text_encoder")
    ours = FluxConditionedPipeline.from_single_file(path, config=tmp_path / "folder")
    assert torch.equal(image(ours), image(pipe))


def test_schnell_has_its_own_schedule(tmp_path):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    kept = {
        n: c for n, c in pipe.components.items() if n in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    }
    weights = {k: w for k, w in parts(pipe)["transformer"].items() if "guidance_in" not in k}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(AXES))
    save_file(weights, tmp_path / "x.safetensors")
    ours = FluxConditionedPipeline.from_single_file(tmp_path / "x.safetensors", config=tmp_path, vae=pipe.vae, **kept)
    assert ours.scheduler.config.shift == 1.0
    assert not ours.scheduler.config.use_dynamic_shifting


def test_gguf(pipe, folder, tmp_path):
    path = write_gguf(tmp_path / "flux1-dev-Q8_0.gguf", parts(pipe, "")["transformer"])
    given = {name: pipe.components[name] for name in ("text_encoder", "text_encoder_2", "vae")}
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    ours = FluxConditionedPipeline.from_single_file(path, config=folder, quantization_config=config, **given)
    assert type(ours.transformer.transformer_blocks[0].attn.to_q).__name__ == "GGUFLinear"
    assert 0 < (image(ours) - image(pipe)).abs().max() < 0.1
    with pytest.raises(ValueError, match="flux1-dev-Q8_0.gguf.*quantization_config=GGUFQuantizationConfig"):
        FluxConditionedPipeline.from_single_file(path, config=folder, **given)


def test_what_is_missing_is_named_at_once(pipe, folder, tmp_path, monkeypatch):
    path = write(tmp_path / "x.safetensors", pipe, "transformer", "vae")
    monkeypatch.setattr(FluxExtTransformer2DModel, "from_single_file", None)
    shutil.copytree(folder, tmp_path / "folder", ignore=shutil.ignore_patterns("text_encoder*"))
    with pytest.raises(
        ValueError, match=r"x.safetensors.*`text_encoder`, `text_encoder_2` missing.*transformer, vae.*`config="
    ):
        FluxConditionedPipeline.from_single_file(path, config=tmp_path / "folder")
    given = {name: pipe.components[name] for name in ("text_encoder", "text_encoder_2")}
    with pytest.raises(ValueError, match="`tokenizer`, `tokenizer_2` missing"):
        FluxConditionedPipeline.from_single_file(path, **given)
    with pytest.raises(
        ValueError, match="missing: the file holds transformer, vae, and there is no folder `.*nowhere`"
    ):
        FluxConditionedPipeline.from_single_file(path, config=tmp_path / "nowhere")
    (tmp_path / "empty" / "tokenizer").mkdir(parents=True)
    (tmp_path / "empty" / "tokenizer_2").mkdir()
    with pytest.raises(ValueError, match="`tokenizer`, `tokenizer_2` missing"):
        FluxConditionedPipeline.from_single_file(path, config=tmp_path / "empty", **given)


def test_other_files(tmp_path, folder):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors.*the file holds none of a FLUX.1 pipeline's models"):
        FluxConditionedPipeline.from_single_file(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="missing.safetensors"):
        FluxConditionedPipeline.from_single_file(tmp_path / "missing.safetensors")
    with pytest.raises(TypeError, match=r"no components \['text_encoder_3'\]"):
        FluxConditionedPipeline.from_single_file(tmp_path / "x.safetensors", text_encoder_3=None)
