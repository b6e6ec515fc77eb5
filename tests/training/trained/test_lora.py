"""Adapters in models: what they start from, what is trained, and that they can be taken out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.support.tiny.lora_encoder import tiny_lora
from diffusers_flux_ext import FluxConditionedPipeline, load_lora
from diffusers_flux_ext.lora.loading.plan import adapter_names
from diffusers_flux_ext.testing import tiny_pipeline, tiny_text_encoder, tiny_text_encoder_2, tiny_transformer
from diffusers_flux_ext.training import FluxTraining
from diffusers_flux_ext.training.trained import LoRAOptions, TrainedLoRA, add_lora
from tests.fixtures.trained import shake, velocity
from tests.training.samples import batch


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"targets": "all-linear", "bias": True},
    "dora": {"kind": "dora"},
    "lokr": {"kind": "lokr", "rank": 2},
    "lokr, factor": {"kind": "lokr", "rank": 2, "factor": 4},
    "tied": {"targets": "reference", "tied": True},
    "tied dora": {"targets": "reference", "tied": True, "kind": "dora"},
}


def options(name: str) -> LoRAOptions:
    return LoRAOptions(**{"rank": 4, **KINDS[name]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_start_from_the_base_train_in_float32_and_can_be_removed(kind: str, dtype: torch.dtype) -> None:
    transformer = tiny_transformer().to(dtype).requires_grad_(True)
    weights = {name: value.clone() for name, value in transformer.state_dict().items()}
    base = velocity(transformer)
    lora = add_lora(transformer, options(kind))
    parameters = lora.named_parameters()
    output = velocity(transformer)
    assert torch.equal(output, base)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    trained = {id(parameter) for parameter in transformer.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in parameters.values()}

    output.float().pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())
    assert any(bool(parameter.grad.any()) for parameter in parameters.values())
    shake(lora)
    assert not torch.equal(velocity(transformer), base)
    with lora.switched_off():
        assert torch.equal(velocity(transformer), base)
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == trained

    lora.remove()
    assert adapter_names(transformer) == []
    assert transformer.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in transformer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_restores_the_parameters_and_does_not_know_the_adapters_name(kind: str) -> None:
    first, second = tiny_transformer(), tiny_transformer()
    one, other = add_lora(first, options(kind), name="one"), add_lora(second, options(kind), name="other", seed=1)
    shake(one)
    state = one.state()
    assert not any(value.data_ptr() == one.named_parameters()[name].data_ptr() for name, value in state.items())
    other.load(state)
    assert torch.equal(velocity(first), velocity(second))
    broken = dict(list(state.items())[1:])
    with pytest.raises(ValueError, match="`state` does not belong to what is trained"):
        other.load(broken)
    name = next(iter(state))
    with pytest.raises(ValueError, match="of another shape"):
        other.load({**state, name: torch.zeros(1, 1)})
    assert torch.equal(velocity(first), velocity(second))


def test_first_values_depend_on_the_seed_and_the_name_alone() -> None:
    one, same, other = (
        add_lora(tiny_transformer(), LoRAOptions(targets, rank=2), seed=seed).state()
        for targets, seed in (("attention", 0), ("all-linear", 0), ("attention", 1))
    )
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    downs = [name for name in one if name.endswith("lora_A.weight")]
    assert not any(torch.equal(one[name], other[name]) for name in downs)
    assert len({one[name].sum().item() for name in downs}) == len(downs)
    bound = 1 / 32**0.5
    assert 0.9 * bound < float(one["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"].abs().max()) <= bound


def test_gaussian_first_values() -> None:
    state = add_lora(tiny_transformer(), LoRAOptions("reference", rank=8, init="gaussian")).state()
    drawn = torch.cat([value.flatten() for name, value in state.items() if "lora_A" in name])
    assert abs(float(drawn.std()) - 1 / 8) < 2e-3


def test_the_scale_is_that_of_the_options() -> None:
    for given, scale in (({"alpha": 2}, 0.5), ({"alpha": 2, "rank_stabilized": True}, 1.0), ({}, 1.0)):
        lora = add_lora(tiny_transformer(), LoRAOptions("attention", rank=4, **given))
        assert lora.adapters["transformer"].scale("transformer_blocks.0.attn.to_q") == scale


def test_dropout_is_on_in_training_only() -> None:
    transformer = tiny_transformer()
    lora = add_lora(transformer, LoRAOptions(rank=4, dropout=0.5))
    shake(lora)
    assert not transformer.training
    assert not torch.equal(velocity(transformer), velocity(transformer))
    lora.train(False)
    assert torch.equal(velocity(transformer), velocity(transformer))


def test_lokr_draws_no_numbers_in_training() -> None:
    transformer = tiny_transformer()
    transformer.train()
    add_lora(transformer, LoRAOptions(kind="lokr", rank=2))
    before = torch.get_rng_state()
    velocity(transformer)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_adapter_stays_active_and_frozen() -> None:
    pipe = tiny_pipeline(FluxConditionedPipeline)
    plain = velocity(pipe.transformer)
    load_lora(pipe, tiny_lora(), "preset", 0.3)
    # PyTorch multiplies weights that need gradients in another order.
    pipe.transformer.requires_grad_(False)
    base = velocity(pipe.transformer)
    lora = add_lora(pipe.transformer, LoRAOptions("attention", rank=2))
    assert torch.equal(velocity(pipe.transformer), base)
    trained = {name for name, parameter in pipe.transformer.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".trained." in name for name in trained)
    shake(lora)
    with lora.switched_off():
        assert torch.equal(velocity(pipe.transformer), base)
    lora.remove()
    assert torch.equal(velocity(pipe.transformer), base)
    assert not torch.equal(base, plain)


def test_preserved_samples_ask_for_the_base_with_its_other_adapters() -> None:
    pipe = tiny_pipeline(FluxConditionedPipeline)
    load_lora(pipe, tiny_lora(), "preset", 0.3)
    lora = add_lora(pipe.transformer, LoRAOptions("reference", rank=2, tied=True))
    given = batch([], 2, preserved=torch.tensor([True, False]))
    with FluxTraining(pipe.transformer, base=lora.switched_off) as training:
        assert training(given)[0] == 0
        shake(lora)
        losses = training(given)
        losses.sum().backward()
    assert float(losses[0].detach()) > 0
    assert all(parameter.grad is not None for parameter in lora.named_parameters().values())


def test_text_encoders_get_adapters_that_start_from_the_base() -> None:
    models: Any = {"text_encoder": tiny_text_encoder(), "text_encoder_2": tiny_text_encoder_2()}
    ids = torch.tensor([[3, 4, 5, 1]])
    before = {name: model(ids)[0] for name, model in models.items()}
    lora = add_lora(models, LoRAOptions("attention+mlp", rank=2))
    assert all(torch.equal(model(ids)[0], before[name]) for name, model in models.items())
    sum(model(ids)[0].pow(2).sum() for model in models.values()).backward()
    assert all(parameter.grad is not None for parameter in lora.named_parameters().values())
    shake(lora)
    assert not any(torch.equal(model(ids)[0], before[name]) for name, model in models.items())


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
def test_a_base_quantised_by_quanto_passes_the_gradients_on(kind: str) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="needs optimum-quanto")
    transformer = tiny_transformer()
    quanto.quantize(transformer, weights=quanto.qint8)
    quanto.freeze(transformer)
    base = velocity(transformer)
    lora = add_lora(transformer, LoRAOptions("attention+mlp", kind=kind, rank=2))
    assert torch.equal(velocity(transformer), base)
    shake(lora)
    velocity(transformer).pow(2).sum().backward()
    gradients = {name: parameter.grad for name, parameter in lora.named_parameters().items()}
    assert all(gradient is not None for gradient in gradients.values())
    # The same through the matrices that the quantised weights stand for.
    plain = tiny_transformer()
    with torch.no_grad():
        for name, layer in plain.named_modules():
            if type(layer) is torch.nn.Linear:
                source = transformer.get_submodule(name)
                weight = getattr(source, "base_layer", source).weight
                layer.weight.copy_(weight.dequantize() if hasattr(weight, "dequantize") else weight)
    other = add_lora(plain, LoRAOptions("attention+mlp", kind=kind, rank=2))
    other.load(lora.state())
    velocity(plain).pow(2).sum().backward()
    for name, parameter in other.named_parameters().items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
def test_a_base_stored_in_8_bits_passes_the_gradients_on(kind: str) -> None:
    transformer = tiny_transformer()
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert transformer.transformer_blocks[0].attn.to_q.weight.dtype is torch.float8_e4m3fn
    base = velocity(transformer)
    if kind == "dora":
        with pytest.raises(ValueError, match="'dora' computes with the lengths .* 8 bits: .*attn.to_q`"):
            add_lora(transformer, LoRAOptions("attention+mlp", kind=kind, rank=2))
        assert torch.equal(velocity(transformer), base)
        return
    lora = add_lora(transformer, LoRAOptions("attention+mlp", kind=kind, rank=2))
    assert torch.equal(velocity(transformer), base)
    assert {parameter.dtype for parameter in lora.named_parameters().values()} == {torch.float32}
    shake(lora)
    velocity(transformer).pow(2).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in lora.named_parameters().values())


def test_gguf_weights_are_refused() -> None:
    from diffusers.quantizers.gguf.utils import GGUFParameter

    transformer = tiny_transformer()
    weight = transformer.proj_out.weight
    transformer.proj_out.weight = GGUFParameter(weight.data.to(torch.uint8), requires_grad=False, quant_type=8)
    with pytest.raises(ValueError, match="`transformer` holds GGUF weights, which diffusers can only infer with"):
        add_lora(transformer, LoRAOptions("attention"))
    transformer.proj_out.weight = weight

    class Quantizer:
        is_trainable = False
        quantization_config = type("Config", (), {"quant_method": "some method"})

    transformer.hf_quantizer = Quantizer()
    with pytest.raises(ValueError, match="`transformer` is quantised by some method, whose layers pass no gradient"):
        add_lora(transformer, LoRAOptions("attention"))


def test_what_hides_or_excludes_an_adapter_is_refused() -> None:
    transformer = tiny_transformer()
    lora = add_lora(transformer, LoRAOptions("attention", rank=2))
    for name, message in (("trained", "has an adapter 'trained' already"), ("a.b", "`name` is 'a.b'")):
        with pytest.raises(ValueError, match=message):
            add_lora(transformer, LoRAOptions("attention"), name=name)
    with pytest.raises(ValueError, match="has adapters of PEFT's kinds \\['LORA'\\]; a LOKR beside them"):
        add_lora(transformer, LoRAOptions("attention", kind="lokr"), name="other")
    transformer.disable_adapters()
    with pytest.raises(ValueError, match="Adapters of `transformer` are disabled, which would disable this one"):
        add_lora(transformer, LoRAOptions("attention"), name="other")
    transformer.enable_adapters()
    transformer.fuse_lora()
    with pytest.raises(ValueError, match="fused into `transformer`"):
        add_lora(transformer, LoRAOptions("attention"), name="other")
    assert len(lora.named_parameters()) > 0
    with pytest.raises(ValueError, match="`models` names \\['vae'\\]"):
        add_lora({"vae": transformer})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="`bias` is given, but these layers have none"):
        add_lora({"text_encoder_2": tiny_text_encoder_2()}, LoRAOptions("attention", bias=True))
    with pytest.raises(ValueError, match="include no two parts of a fused layer"):
        add_lora(tiny_transformer(), LoRAOptions(["*.to_q"], tied=True))
    with pytest.raises(ValueError, match="these have different ranks: .*to_q': 2, .*to_k': 4"):
        add_lora(tiny_transformer(), LoRAOptions("attention", rank=4, ranks={"*.to_q": 2}, tied=True))


def test_tied_parts_train_one_factor() -> None:
    transformer = tiny_transformer()
    lora = add_lora(transformer, LoRAOptions("reference", rank=2, tied=True))
    block = transformer.single_transformer_blocks[0]
    downs = [
        layer.lora_A["trained"].weight for layer in (block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp)
    ]
    assert all(down is downs[0] for down in downs)
    names = lora.named_parameters()
    assert "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight" in names
    assert "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight" not in names
    assert "transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight" in names
    # As many as the reference's adapters of fused layers have: see the sizes in its recipes.
    width, double, single = 32, 2, 3
    per_rank = double * 2 * (7 + 4 + 2 + 5 + 5) * width + single * (8 + 4 + 6) * width
    assert sum(parameter.numel() for parameter in names.values()) == 2 * per_rank


def test_checkpointing_recomputes_the_same_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        transformer = tiny_transformer()
        lora: TrainedLoRA = add_lora(transformer, LoRAOptions("reference", rank=2, dropout=0.3))
        shake(lora)
        if checkpointed:
            transformer.enable_gradient_checkpointing()
            transformer.train()
        torch.manual_seed(0)
        velocity(transformer).pow(2).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in lora.named_parameters().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-5)


def test_a_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    from diffusers_flux_ext.training.trained import ExportInfo

    lora = add_lora(tiny_transformer(), LoRAOptions("attention", rank=2))
    (path,) = lora.export(tmp_path / "a" / "b", ExportInfo("base"))
    assert path == tmp_path / "a" / "b" / "pytorch_lora_weights.safetensors"
