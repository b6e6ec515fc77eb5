"""Conditions from their sections: what is loaded, in which data type, and what gets gradients."""

import pytest
import torch
from transformers import SiglipVisionModel

import diffusers_flux_ext as dfx
from benchmarks.support.tiny.infinite_you import ColorFaceEncoder
from benchmarks.support.tiny.ip_adapter import tiny_siglip
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training.config.sample_sections import ConditionSection
from diffusers_flux_ext.training.run.templates import make_templates
from diffusers_flux_ext.training.trained import from_scratch


def section(kind, **modules):
    return ConditionSection.model_validate({"type": kind, "modules": modules})


def test_trained_modules_have_the_models_data_type_and_gradients():
    adapter = {"kind": "ip-adapter", "train": True, "sizes": {"image_embed_dim": 12}}
    sections = [section("IPAdapterImages", adapter=adapter)]
    (template,), trained = make_templates(sections, tiny_transformer(), 0, torch.bfloat16)
    parameters = list(template.modules["adapter"].parameters())
    assert {each.dtype for each in parameters} == {torch.bfloat16}
    assert all(each.requires_grad for each in parameters)
    assert len(trained["adapter"].named_parameters()) == len(parameters)


def test_a_module_that_is_not_trained_gets_no_gradients(tmp_path):
    from_scratch("controlnet", tiny_transformer()).save_pretrained(tmp_path)
    net = {"kind": "controlnet", "path": str(tmp_path)}
    (template,), trained = make_templates(
        [section("ControlNetImage", controlnet=net)], tiny_transformer(), 0, torch.float32
    )
    assert not trained
    assert not any(each.requires_grad for each in template.modules["controlnet"].parameters())


def test_what_encodes_is_loaded_frozen_in_the_models_data_type(tmp_path, monkeypatch):
    tiny_siglip().save_pretrained(tmp_path)
    monkeypatch.setattr(dfx, "InsightFaceEncoder", lambda path: ColorFaceEncoder())
    vision = {"kind": "transformers:SiglipVisionModel", "path": str(tmp_path)}
    faces = {"kind": "diffusers_flux_ext:InsightFaceEncoder", "path": "arcface.pth"}
    sections = [section("ReduxImages", image_encoder=vision), section("InfiniteYouIdentity", face_encoder=faces)]
    (redux, identity), _ = make_templates(sections, tiny_transformer(), 0, torch.bfloat16)
    encoder = redux.encoders["image_encoder"]
    assert isinstance(encoder, SiglipVisionModel)
    assert {(each.dtype, each.requires_grad) for each in encoder.parameters()} == {(torch.bfloat16, False)}
    assert isinstance(identity.encoders["face_encoder"], ColorFaceEncoder)
    unknown = {"kind": "transformers:NoSuchModel", "path": str(tmp_path)}
    with pytest.raises(ValueError, match="`transformers:NoSuchModel` is not a class"):
        make_templates([section("ReduxImages", image_encoder=unknown)], tiny_transformer(), 0, torch.float32)
