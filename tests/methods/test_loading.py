"""Loading modules by their classes: which class it is, where it is, and what is said of others."""

import pytest
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, ReduxImageEncoder
from safetensors.torch import save_file
from transformers import CLIPVisionModelWithProjection, SiglipVisionModel

from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.ip_adapter import tiny_clip_vision, tiny_ip_adapter
from benchmarks.support.tiny.nexus_gen import published_decoder, tiny_adapter
from benchmarks.support.tiny.redux import tiny_redux_embedder
from diffusers_flux_ext import AttributeValueEncoder, FluxIPAdapter, NexusGenAdapter, NexusGenEditingMerger
from diffusers_flux_ext.methods.infinite_you.faces import FaceEncoder
from diffusers_flux_ext.methods.infinite_you.insightface import load_face_encoder
from diffusers_flux_ext.methods.loading import is_loadable, is_repository, load_module
from diffusers_flux_ext.testing import tiny_transformer


def equal(module, other):
    return all(torch.equal(*pair) for pair in zip(module.state_dict().values(), other.state_dict().values()))


def test_a_folder_says_which_class_it_holds(tmp_path):
    made = {"plain": tiny_controlnet(), "clip": tiny_clip_vision(), "adapter": tiny_ip_adapter()}
    for name, module in made.items():
        module.save_pretrained(tmp_path / name)
    vision = (SiglipVisionModel, CLIPVisionModelWithProjection)
    assert type(load_module(vision, str(tmp_path / "clip"))) is CLIPVisionModelWithProjection
    loaded = load_module((FluxControlNetModel,), str(tmp_path), subfolder="plain", dtype=torch.bfloat16)
    assert isinstance(loaded, FluxControlNetModel)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert not loaded.training
    with pytest.raises(ValueError, match="holds a FluxIPAdapter; expected a `AttributeValueEncoder`"):
        load_module((AttributeValueEncoder,), str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="holds a CLIPVisionModelWithProjection; expected a `SiglipVisionModel`"):
        load_module((SiglipVisionModel,), str(tmp_path / "clip"))


def test_published_files_are_read_by_their_own_loaders(tmp_path):
    redux, adapter = tiny_redux_embedder(), tiny_adapter()
    save_file(dict(redux.state_dict()), tmp_path / "flux1-redux-dev.safetensors")
    for options in ({"path": str(tmp_path)}, {"path": str(tmp_path), "weight_name": "flux1-redux-dev.safetensors"}):
        assert equal(load_module((ReduxImageEncoder,), **options), redux)
    torch.save(published_decoder(tiny_transformer(), adapter), tmp_path / "generation_decoder.bin")
    # The first class whose keys are in the file.
    either = (NexusGenEditingMerger, NexusGenAdapter)
    assert equal(load_module(either, str(tmp_path / "generation_decoder.bin")), adapter)
    with pytest.raises(ValueError, match="Redux"):
        load_module((ReduxImageEncoder,), str(tmp_path / "generation_decoder.bin"))
    with pytest.raises(ValueError, match="is not read from"):
        load_module((CLIPVisionModelWithProjection,), str(tmp_path / "flux1-redux-dev.safetensors"))


def test_what_is_shipped_for_the_tiny_model_is_found_by_its_class():
    assert load_module((AttributeValueEncoder,), "tiny").config.attributes == ["size"]
    assert isinstance(load_module((FluxControlNetModel,), "tiny"), FluxControlNetModel)
    with pytest.raises(ValueError, match="no FluxIPAdapter is shipped"):
        load_module((FluxIPAdapter,), "tiny")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder `nowhere`"):
        load_module((AutoencoderKL,), "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_module((AutoencoderKL,), str(tmp_path), weight_name="model.safetensors")
    with pytest.raises(FileNotFoundError, match="does not have `recognition_arcface_ir_se50.pth`"):
        load_face_encoder(tmp_path)


def test_names_of_repositories_are_told_from_paths():
    assert is_repository("black-forest-labs/FLUX.1-dev")
    for path in ("folder", "a/b/c", "folder/model.safetensors", "/absolute/path", "../above", "https://host/name"):
        assert not is_repository(path)


def test_classes_that_can_be_loaded_are_known():
    assert all(map(is_loadable, (AutoencoderKL, SiglipVisionModel, FaceEncoder)))
    assert not any(map(is_loadable, (int, FaceEncoder | None, "AutoencoderKL", dict)))
