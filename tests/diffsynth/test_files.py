"""Files are known by their structure: re-saved, tuned, in other types and layouts; what is not known is described."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.diffsynth.models import DEV, FILES, bfl_dit, bfl_vae, clip, controlnet, dit, lora, t5, values
from diffusers_flux_ext.checkpoints.layouts import PREFIX, convert_transformer_state_dict
from diffusers_flux_ext.checkpoints.text_encoder_layouts import CLIP_PREFIX, T5_PREFIX
from diffusers_flux_ext.diffsynth import ModelConfig
from diffusers_flux_ext.diffsynth.files import recognise
from diffusers_flux_ext.diffsynth.loading import load_models
from tests.diffsynth.pipelines import base, draw, load


KINDS = {
    "flux_dit": {"a FLUX.1 transformer", "Step1X-Edit", "a decoder of Nexus-Gen"},
    "flux_text_encoder_clip": {"CLIP's text model"},
    "flux_text_encoder_t5": {"T5's encoder"},
    "flux_vae_encoder": {"a VAE"},
    "flux_vae_decoder": {"a VAE"},
    "flux_controlnet": {"a ControlNet"},
    "infiniteyou_image_projector": {"InfiniteYou's projector"},
    "flux_ipadapter": {"an IP-Adapter"},
    "siglip_vision_model": {"SigLIP's vision model"},
    "flux_redux_image_encoder": {"SigLIP's vision model"},
    "flux_redux_image_embedder": {"Redux' embedder"},
    "flux_value_controller": {"an encoder of AttriCtrl"},
    "flux_lora_encoder": {"LoRA-Encoder"},
    "flux_lora_patcher": {"LoRA-Fusion"},
    "step1x_connector": {"Step1X-Edit"},
    "qwen_image_text_encoder": {"Qwen2.5-VL"},
    "nexus_gen_llm": {"Nexus-Gen's language model"},
    "nexus_gen_generation_adapter": {"a decoder of Nexus-Gen"},
    "nexus_gen_editing_adapter": {"a decoder of Nexus-Gen"},
}


@pytest.mark.parametrize("key", FILES, ids=lambda key: "/".join(key))
def test_every_file_is_known(key):
    kinds = {part.kind.what for part in recognise(FILES[key].weights(), "file")}
    assert len(kinds) == 1
    for name in FILES[key].models:
        assert kinds <= KINDS[name]


def components(state_dict, dtype=torch.float32):
    return load_models([ModelConfig(state_dict=state_dict)], dtype).components


@pytest.mark.parametrize("layout", ["diffusers", "diffsynth"])
def test_a_transformer_in_other_names(layout):
    weights = convert_transformer_state_dict(dit().state_dict(), to=layout)
    model = components(weights)["transformer"]
    assert all(torch.equal(weight, model.state_dict()[key]) for key, weight in dit().state_dict().items())


def test_a_resaved_and_tuned_file_of_other_types_loads(downloaded, tmp_path):
    changed = {key: (tensor + 0.01).half() for key, tensor in bfl_dit().items()}
    # A block less gives names and shapes that no table of hashes has.
    changed = {key: tensor for key, tensor in changed.items() if not key.startswith("single_blocks.1.")}
    save_file(changed, tmp_path / "merged.safetensors")
    first, *others = base()
    image = draw(load(ModelConfig(path=str(tmp_path / "merged.safetensors")), *others))
    assert image.std() > 1
    assert first.origin_file_pattern == "flux1-dev.safetensors"


def test_a_file_with_all_models():
    everything = {f"{PREFIX}{key}": tensor for key, tensor in bfl_dit().items()}
    everything |= {
        f"{CLIP_PREFIX}transformer.text_model.{k.removeprefix('text_model.')}": w
        for k, w in clip().state_dict().items()
    }
    everything |= {f"{T5_PREFIX}transformer.{key}": tensor for key, tensor in t5().state_dict().items()}
    everything |= {f"vae.{key}": tensor for key, tensor in bfl_vae().items()}
    found = components(everything)
    assert found.keys() == {"transformer", "text_encoder", "text_encoder_2", "vae"}
    with pytest.raises(ValueError, match="holds several models, and beside them `extra`"):
        components({**everything, "extra": torch.ones(2)})


@pytest.mark.parametrize(
    "weights, words",
    [
        (
            {"unet.x.weight": torch.ones(2)},
            r"is not known: It has 1 tensors such as `unet\.x\.weight`.*Expected is one of",
        ),
        ({}, "It has 0 tensors"),
        (lora(), r"is a LoRA.*pipe\.load_lora"),
        ({**bfl_dit(), "extra.weight": torch.ones(2)}, r"`extra\.weight`"),
        ({k: w for k, w in bfl_dit().items() if k != "img_in.bias"}, r"`img_in\.bias`"),
        (
            {k: w for k, w in controlnet("union").state_dict().items() if k != "controlnet_x_embedder.bias"},
            "x_embedder.bias",
        ),
    ],
)
def test_what_is_wrong_is_described(weights, words, tmp_path):
    file = tmp_path / "wrong.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in weights.items()}, file)
    with pytest.raises(ValueError, match=rf"wrong\.safetensors.*{words}"):
        load_models([ModelConfig(path=str(file))], torch.float32)


def test_values_of_files_with_one_name_are_kept_apart(tmp_path):
    for index, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        save_file(dict(values().encoders[index].state_dict()), tmp_path / folder / "model.safetensors")
    configs = [ModelConfig(path=str(tmp_path / folder / "model.safetensors")) for folder in ("a", "b")]
    encoder = load_models(configs, torch.float32).components["value_encoder"]
    assert list(encoder.config.attributes) == ["model", "model_1"]
    assert torch.equal(
        encoder.encoders[1].state_dict()["positional_embedding"], values().encoders[1].positional_embedding
    )


def test_the_first_of_two_transformers_is_used(caplog):
    configs = [ModelConfig(state_dict=bfl_dit()), ModelConfig(state_dict=bfl_dit("fill"))]
    assert load_models(configs, torch.float32).components["transformer"].config.in_channels == 64
    assert "a second transformer" in caplog.text


def test_a_model_in_a_type_of_its_own():
    config = ModelConfig(state_dict=bfl_dit(), computation_dtype=torch.float64)
    assert load_models([config], torch.float32).components["transformer"].dtype == torch.float64


def test_a_folder_of_shards(downloaded):
    config = ModelConfig(path=str(downloaded / DEV / "text_encoder_2"))
    assert "text_encoder_2" in load_models([config], torch.float32).components


def test_one_vision_model_serves_both_methods():
    weights = FILES["black-forest-labs/FLUX.1-Redux-dev", "image_encoder/model.safetensors"].weights()
    found = components(weights)
    assert found["image_encoder"] is found["redux_encoder"]
    whole = FILES["google/siglip-so400m-patch14-384", "model.safetensors"].weights()
    both = load_models([ModelConfig(state_dict=weights), ModelConfig(state_dict=whole)], torch.float32).components
    assert both["image_encoder"] is not both["redux_encoder"]
