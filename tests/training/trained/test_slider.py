"""A slider's LoRA acts on each sample with its own strength, and so does what lies under a LoRA act as it is."""

import pytest
import torch

from diffusers_flux_ext.lora.errors import LoRAError
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import FluxTraining
from diffusers_flux_ext.training.trained import (
    ExportInfo,
    LoRAOptions,
    Strengths,
    add_lora,
    fuse_under,
    lay_under,
)
from tests.training.samples import batch


OPTIONS = LoRAOptions("reference", rank=2)


def shaken(lora, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.named_parameters().values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return lora


def losses(transformer, given, **options):
    with FluxTraining(transformer, **options) as training:
        return training(given)


def scaled(factor):
    """The losses with a LoRA whose product is scaled as a whole."""
    transformer = tiny_transformer(0)
    lora = shaken(add_lora(transformer, OPTIONS))
    with torch.no_grad():
        for name, parameter in lora.named_parameters().items():
            parameter.mul_(factor if ".lora_B." in name else 1)
        return losses(transformer, batch([], 3))


def test_each_sample_has_its_strength():
    transformer = tiny_transformer(0)
    strengths = Strengths(shaken(add_lora(transformer, OPTIONS)))
    values = torch.tensor([1.0, 0.0, -0.5])
    with torch.no_grad():
        found = losses(transformer, batch([], 3, strength=values), strengths=strengths.set)
        for index, value in enumerate(values.tolist()):
            torch.testing.assert_close(found[index], scaled(value)[index], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[1], losses(tiny_transformer(0), batch([], 3))[1])
        strengths.set(None)
        torch.testing.assert_close(losses(transformer, batch([], 3)), scaled(1.0))
        strengths.set(values)
        strengths.remove()
        torch.testing.assert_close(losses(transformer, batch([], 3)), scaled(1.0))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_follow_the_strengths(checkpointing):
    transformer = tiny_transformer(0)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    lora = add_lora(transformer, OPTIONS)
    strengths = Strengths(lora)
    gradients = []
    for value in (1.0, -1.0, 0.0):
        with FluxTraining(transformer, strengths=strengths.set) as training:
            training.train(checkpointing)
            training(batch([], 1, strength=torch.tensor([value]))).sum().backward()
        gradients.append({name: each.grad for name, each in lora.named_parameters().items()})
        for parameter in lora.named_parameters().values():
            parameter.grad = None
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], -gradient, rtol=1e-4, atol=1e-7)
        assert not gradients[2][name].any()


def test_another_kind_is_no_slider():
    with pytest.raises(ValueError, match="needs the kind 'lora'.*'dora'"):
        Strengths(add_lora(tiny_transformer(0), LoRAOptions("attention", rank=2, kind="dora")))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    transformer = tiny_transformer(0)
    lora = shaken(add_lora(transformer, LoRAOptions("attention+mlp", rank=3, ranks={"transformer_blocks.0": 2})))
    return lora.export(tmp_path_factory.mktemp("lora"), ExportInfo("base"))[0]


def first_losses(file, weight=1.0):
    transformer = tiny_transformer(0)
    with torch.no_grad():
        lora = add_lora(transformer, LoRAOptions("attention+mlp", rank=3), init_from=file)
        for name, parameter in lora.named_parameters().items():
            parameter.mul_(weight if ".lora_B." in name else 1)
        return losses(transformer, batch([], 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_under_is_exact_and_frozen(file, dtype):
    transformer = tiny_transformer(0).to(dtype)
    under = lay_under(transformer, file, "base_0")
    lora = add_lora(transformer, LoRAOptions("attention", rank=2))
    assert all(each.dtype == torch.float32 for each in under.named_parameters().values())
    trained = {name for name, each in transformer.named_parameters() if each.requires_grad}
    assert trained == {name for name in trained if ".trained." in name}
    assert len(trained) == len(lora.named_parameters())
    if dtype == torch.float32:
        with torch.no_grad():
            torch.testing.assert_close(losses(transformer, batch([], 2)), first_losses(file))
            with lora.switched_off():
                torch.testing.assert_close(losses(transformer, batch([], 2)), first_losses(file))


def test_what_lies_under_has_a_weight_or_is_fused(file):
    with torch.no_grad():
        transformer = tiny_transformer(0)
        lay_under(transformer, file, "base_0", 0.5)
        torch.testing.assert_close(losses(transformer, batch([], 2)), first_losses(file, 0.5))
        fused = tiny_transformer(0)
        fuse_under(fused, {str(file): 0.5})
        assert not hasattr(fused, "peft_config")
        torch.testing.assert_close(losses(fused, batch([], 2)), first_losses(file, 0.5), rtol=1e-4, atol=1e-5)


def test_what_cannot_lie_under_is_refused(tmp_path):
    dora = shaken(add_lora(tiny_transformer(0), LoRAOptions("attention", rank=2, kind="dora")))
    (file,) = dora.export(tmp_path, ExportInfo("base"))
    transformer = tiny_transformer(0)
    with pytest.raises(LoRAError, match="DoRA.*cannot lie under.*Fuse it"):
        lay_under(transformer, file, "base_0")
    with pytest.raises(LoRAError, match=r"none\.safetensors"):
        lay_under(transformer, tmp_path / "none.safetensors", "base_0")
    assert not hasattr(transformer, "peft_config")
