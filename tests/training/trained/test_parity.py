"""Tied adapters train as PEFT's do on the reference's own transformer, with the targets of its recipes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file

from benchmarks.support.reference import import_reference, reference_dit
from diffusers_flux_ext.testing import seeded_generator, tiny_transformer
from diffusers_flux_ext.training.trained import ExportInfo, LoRAOptions, add_lora
from tests.fixtures.trained import shake
from tests.training.trained.test_names import RECIPE


flux_image = import_reference("diffsynth.pipelines.flux_image")
HEIGHT, WIDTH, TEXT, RANK = 4, 6, 5, 3


def inputs(seed: int) -> dict[str, torch.Tensor]:
    generator = seeded_generator(seed, "inputs")
    return {
        "latents": torch.randn(1, 16, HEIGHT, WIDTH, generator=generator),
        "prompt_emb": torch.randn(1, TEXT, 40, generator=generator),
        "pooled_prompt_emb": torch.randn(1, 24, generator=generator),
        "timestep": torch.tensor([617.25]),
        "guidance": torch.tensor([1.0]),
        "text_ids": torch.zeros(1, TEXT, 3),
    }


def our_velocity(model: Any, values: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = model(
        hidden_states=FluxPipeline._pack_latents(values["latents"], 1, 16, HEIGHT, WIDTH),
        encoder_hidden_states=values["prompt_emb"],
        pooled_projections=values["pooled_prompt_emb"],
        timestep=values["timestep"] / 1000,
        guidance=values["guidance"],
        img_ids=FluxPipeline._prepare_latent_image_ids(1, HEIGHT // 2, WIDTH // 2, "cpu", torch.float32),
        txt_ids=values["text_ids"][0],
    ).sample
    return FluxPipeline._unpack_latents(tokens, HEIGHT * 8, WIDTH * 8, 8)


@pytest.mark.slow
def test_tied_adapters_train_to_the_references_factors(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    dit = reference_dit(transformer)
    lora = add_lora(transformer, LoRAOptions("reference", rank=RANK, tied=True), formats=["diffsynth"])
    shake(lora)

    def exported() -> dict[str, torch.Tensor]:
        return load_file(lora.export(tmp_path, ExportInfo("base"))[0])

    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=RECIPE), dit, "default")
    theirs = {name.replace(".default", ""): p for name, p in dit.named_parameters() if ".lora_" in name}
    start = exported()
    assert start.keys() == theirs.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(start[name])
    ours = lora.named_parameters()
    assert sum(p.numel() for p in ours.values()) == sum(p.numel() for p in theirs.values())

    optimizers = [torch.optim.AdamW(part.values(), lr=1e-3) for part in (ours, theirs)]
    for step in range(3):
        values = inputs(step)
        target = torch.randn(1, 16, HEIGHT, WIDTH, generator=seeded_generator(step, "target"))
        for optimizer, predicted in zip(
            optimizers, (our_velocity(transformer, values), flux_image.model_fn_flux_image(dit=dit, **values))
        ):
            optimizer.zero_grad()
            (predicted - target).square().mean().backward()
            optimizer.step()
    trained = exported()
    for name, parameter in theirs.items():
        assert not torch.equal(trained[name], start[name])
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=1e-3, atol=1e-5)
