"""`FluxExtTransformer2DModel` reads the reference's weights and gives the reference's velocity."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

from benchmarks.support.reference import import_reference, reference_dit, reference_velocity
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict
from diffusers_flux_ext.models.transformer_flux_ext import FluxExtTransformer2DModel
from diffusers_flux_ext.testing import seeded_generator, tiny_transformer


converters = import_reference("diffsynth.utils.state_dict_converters.flux_dit")

CONFIGS: dict[str, dict[str, Any]] = {
    "dev": {},
    "schnell": {"guidance_embeds": False},
    "flex": {"in_channels": 196, "out_channels": 64, "num_layers": 1},
    "fill": {"in_channels": 384, "out_channels": 64},
    "released depth": {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 1,
        "attention_head_dim": 8,
        "axes_dims_rope": (2, 2, 4),
    },
}
HEIGHT, WIDTH, TEXT = 6, 10, 7


def inputs(in_channels: int) -> dict[str, torch.Tensor]:
    generator = seeded_generator(0, "inputs")
    return {
        "latents": torch.randn(1, in_channels // 4, HEIGHT, WIDTH, generator=generator),
        "prompt_emb": torch.randn(1, TEXT, 40, generator=generator),
        "pooled_prompt_emb": torch.randn(1, 24, generator=generator),
        "timestep": torch.tensor([617.25]),
        "guidance": torch.tensor([3.5]),
        "text_ids": torch.zeros(1, TEXT, 3),
    }


def our_velocity(model: FluxExtTransformer2DModel, values: dict[str, torch.Tensor]) -> torch.Tensor:
    latents = values["latents"]
    with torch.no_grad():
        tokens = model(
            hidden_states=FluxPipeline._pack_latents(latents, 1, latents.shape[1], HEIGHT, WIDTH),
            encoder_hidden_states=values["prompt_emb"],
            pooled_projections=values["pooled_prompt_emb"],
            timestep=values["timestep"] / 1000,
            guidance=values["guidance"] if model.config.guidance_embeds else None,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, HEIGHT // 2, WIDTH // 2, "cpu", torch.float32),
            txt_ids=values["text_ids"][0],
        ).sample
    return FluxPipeline._unpack_latents(tokens, HEIGHT * 8, WIDTH * 8, 8)


@pytest.mark.parametrize("name", CONFIGS)
def test_velocity_agrees(name: str) -> None:
    stock = tiny_transformer(seed=5, **CONFIGS[name])
    dit = reference_dit(stock)
    ours = FluxExtTransformer2DModel.from_state_dict(dit.state_dict(), axes_dims_rope=stock.config.axes_dims_rope)
    values = inputs(stock.config.in_channels)
    expected = reference_velocity(dit, **values)
    assert expected.std() > 0.1
    torch.testing.assert_close(our_velocity(ours, values), expected, atol=1e-4, rtol=0.0)


def test_a_file_in_black_forest_labs_layout_agrees(tmp_path: Path) -> None:
    stock = tiny_transformer(seed=6)
    weights = convert_transformer_state_dict(stock.state_dict(), to="bfl")
    save_file({key: weight.contiguous() for key, weight in weights.items()}, tmp_path / "flux1-tiny.sft")
    ours = FluxExtTransformer2DModel.from_single_file(tmp_path / "flux1-tiny.sft", axes_dims_rope=(4, 6, 6))
    values = inputs(64)
    expected = reference_velocity(reference_dit(stock), **values)
    torch.testing.assert_close(our_velocity(ours, values), expected, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_both_converters_give_the_same_reference_weights(prefix: str) -> None:
    weights = tiny_transformer(seed=7).state_dict()
    files = convert_transformer_state_dict(weights, to="bfl")
    expected = converters.FluxDiTStateDictConverter({prefix + key: weight for key, weight in files.items()})
    ours = convert_transformer_state_dict(weights, to="diffsynth")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in ours.items())


def test_weights_of_the_reference_are_read_bit_for_bit() -> None:
    stock = tiny_transformer(seed=8)
    weights = convert_transformer_state_dict(reference_dit(stock).state_dict(), to="diffusers")
    assert weights.keys() == stock.state_dict().keys()
    assert all(torch.equal(weight, weights[key]) for key, weight in stock.state_dict().items())
