"""Gates that training starts from."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.tiny.lora_encoder import tiny_lora
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline
from diffusers_flux_ext.training.config.train_section import FusionSection
from diffusers_flux_ext.training.run.fusion import add_fusion
from diffusers_flux_ext.training.trained import from_scratch


@pytest.mark.parametrize("layout", ["folder", "published file"])
def test_given_gates_are_where_training_starts(tmp_path, layout):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    save_file(tiny_lora(), tmp_path / "style.safetensors")
    gates = from_scratch("lora-fusion", pipe.transformer, seed=7)
    for weight in gates.parameters():
        torch.nn.init.normal_(weight)
    wanted = {name: weight.clone() for name, weight in gates.state_dict().items()}
    if layout == "folder":
        gates.save_pretrained(tmp_path / "gates")
        path = tmp_path / "gates"
    else:
        path = tmp_path / "model.safetensors"
        save_file(wanted, path)
    trained = add_fusion(pipe, FusionSection(loras=[str(tmp_path / "style.safetensors")], path=str(path)), seed=0)
    found = trained.module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(weight.requires_grad for weight in trained.module.parameters())
