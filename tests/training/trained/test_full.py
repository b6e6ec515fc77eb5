"""The weights of models themselves, all or some, and wider inputs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from transformers import CLIPTextModel, T5EncoderModel

from diffusers_flux_ext import FluxExtTransformer2DModel
from diffusers_flux_ext.testing import tiny_text_encoder, tiny_text_encoder_2, tiny_transformer, tiny_vae
from diffusers_flux_ext.training.trained import (
    INPUT_CHANNELS,
    ExportInfo,
    LoRAOptions,
    TrainedTogether,
    TrainedWeights,
    add_lora,
    widen_x_embedder,
)
from tests.fixtures.trained import shake, velocity


INFO = ExportInfo("owner/base", steps=3)


def test_the_whole_transformer_is_trained_and_reloads_from_each_layout(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    trained = TrainedWeights(transformer, layouts=("diffusers", "bfl", "diffsynth"))
    assert len(trained.named_parameters()) == len(list(transformer.parameters()))
    velocity(transformer).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.named_parameters().values())
    shake(trained)
    folder, *files = trained.export(tmp_path, INFO)
    expected = velocity(transformer)
    assert torch.equal(velocity(FluxTransformer2DModel.from_pretrained(folder)), expected)
    heads = {"attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "num_attention_heads": 2}
    for file in files:
        assert torch.equal(velocity(FluxExtTransformer2DModel.from_single_file(file, **heads)), expected)
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["training.targets"] == "all"
    notes = json.loads((folder / "training.json").read_text())
    assert notes == {
        "training.base": "owner/base", "training.steps": "3", "training.kind": "full", "training.targets": "all"
    }  # fmt: skip


def test_the_base_predicts_while_a_graph_waits_for_its_backward_pass() -> None:
    transformer = tiny_transformer()
    trained = TrainedWeights(transformer, ["transformer_blocks.0"])
    before = velocity(transformer).detach()
    base = trained.keep_base()
    shake(trained)
    velocity(transformer).pow(2).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in trained.named_parameters().items()}
    transformer.zero_grad()
    prediction = velocity(transformer)
    with torch.no_grad(), base():
        assert torch.equal(velocity(transformer), before)
    prediction.pow(2).sum().backward()
    assert not torch.equal(prediction, before)
    for name, parameter in trained.named_parameters().items():
        assert torch.equal(parameter.grad, expected[name])


def test_chosen_blocks_are_trained_and_the_rest_is_exported_as_it_is(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    trained = TrainedWeights(transformer, ["transformer_blocks.1", "single_transformer_blocks.0-1", "*norm_out*"])
    names = {name.removeprefix("transformer.") for name in trained.named_parameters()}
    assert {name for name, parameter in transformer.named_parameters() if parameter.requires_grad} == names
    assert {".".join(name.split(".")[:2]) for name in names} == {
        "transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.1", "norm_out.linear"
    }  # fmt: skip
    shake(trained)
    average = {name: torch.full_like(value, 0.5) for name, value in trained.state().items()}
    (folder,) = trained.export(tmp_path, INFO, average)
    for name, value in FluxTransformer2DModel.from_pretrained(folder).state_dict().items():
        assert torch.equal(value, torch.full_like(value, 0.5) if name in names else before[name])
    assert not torch.equal(transformer.norm_out.linear.weight, before["norm_out.linear.weight"])
    with pytest.raises(
        ValueError, match="'transformer_blocks.7', which matches no parameter of FluxTransformer2DModel"
    ):
        TrainedWeights(transformer, ["transformer_blocks.7"])


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    trained = TrainedWeights(transformer, ["proj_out"])
    (folder,) = trained.export(tmp_path, INFO)
    shake(trained)
    trained.export(tmp_path, INFO)
    assert torch.equal(FluxTransformer2DModel.from_pretrained(folder).proj_out.weight, transformer.proj_out.weight)
    assert os.listdir(tmp_path) == ["transformer"]
    (folder / "training.json").unlink()
    with pytest.raises(ValueError, match="exists already and is a folder, which is not replaced"):
        trained.export(tmp_path, INFO)


@pytest.mark.parametrize(
    "make, kind, component",
    [(tiny_text_encoder, CLIPTextModel, "text_encoder"), (tiny_text_encoder_2, T5EncoderModel, "text_encoder_2")],
)
def test_text_encoders_are_trained_and_reload(make: Any, kind: Any, component: Any, tmp_path: Path) -> None:
    model, ids = make(), torch.tensor([[3, 4, 5, 1]])
    trained = TrainedWeights(model, component=component)
    trained.train(False)
    model(ids)[0].pow(2).sum().backward()
    missing = [name for name, parameter in trained.named_parameters().items() if parameter.grad is None]
    assert not missing
    shake(trained)
    (folder,) = trained.export(tmp_path, INFO)
    assert torch.equal(kind.from_pretrained(folder)(ids)[0], model(ids)[0])
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_the_config_does_not_say_where_the_model_was_loaded_from(tmp_path: Path) -> None:
    tiny_transformer().save_pretrained(tmp_path / "base")
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path / "base")
    (folder,) = TrainedWeights(loaded, ["proj_out"]).export(tmp_path / "out", INFO)
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_a_lora_and_weights_of_one_model_train_together(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    lora = add_lora(transformer, LoRAOptions("attention", rank=2))
    weights = TrainedWeights(transformer, ["proj_out", "transformer_blocks.0"])
    together = TrainedTogether({"lora": lora, "weights": weights})
    parameters = together.named_parameters()
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == {id(p) for p in parameters.values()}
    assert {name.partition("/")[0] for name in parameters} == {"lora", "weights"}
    assert "weights/transformer.transformer_blocks.0.attn.to_q.weight" in parameters
    shake(together)
    state = together.state()
    file, folder = together.export(tmp_path, INFO, {name: value * 2 for name, value in state.items()})
    assert (file.name, folder.name) == ("pytorch_lora_weights.safetensors", "transformer")
    reloaded = FluxTransformer2DModel.from_pretrained(folder)
    assert torch.equal(reloaded.proj_out.weight, 2 * state["weights/transformer.proj_out.weight"])
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    together.load(state)
    assert all(torch.equal(value, state[name]) for name, value in together.state().items())
    with pytest.raises(ValueError, match="`state` does not belong"):
        together.load(lora.state())
    with pytest.raises(ValueError, match="are one parameter. Train it in one part"):
        TrainedTogether({"weights": weights, "again": TrainedWeights(transformer, ["proj_out"])})
    with pytest.raises(ValueError, match="`parts` has the names \\['a/b'\\]"):
        TrainedTogether({"a/b": lora})


def test_what_cannot_be_trained_is_refused_with_the_reason() -> None:
    with pytest.raises(TypeError, match="A VAE cannot be trained here: the loss compares latents"):
        TrainedWeights(tiny_vae())
    transformer = tiny_transformer()
    with pytest.raises(ValueError, match="`component` is 'dit'; expected one of"):
        TrainedWeights(transformer, component="dit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`layouts` of `text_encoder` is \\['bfl'\\]"):
        TrainedWeights(tiny_text_encoder(), component="text_encoder", layouts=["bfl"])
    transformer.proj_out.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="2 weights of `transformer` are quantised or stored in 8 bits, such as"):
        TrainedWeights(transformer, ["norm_out"])
    transformer = tiny_transformer()
    quanto = pytest.importorskip("optimum.quanto", reason="needs optimum-quanto")
    quanto.quantize(transformer, weights=quanto.qint8, include="*ff.net*")
    quanto.freeze(transformer)
    with pytest.raises(ValueError, match="quantised or stored in 8 bits, such as 'transformer_blocks"):
        TrainedWeights(transformer, ["transformer_blocks"])


@pytest.mark.parametrize("channels", [*INPUT_CHANNELS, 70])
def test_further_channels_change_nothing_before_the_first_update(channels: int | str, tmp_path: Path) -> None:
    transformer = tiny_transformer()
    base = velocity(transformer)
    widen_x_embedder(transformer, channels)
    wanted = INPUT_CHANNELS.get(channels, channels)  # type: ignore[call-overload]
    assert (transformer.config.in_channels, transformer.config.out_channels) == (wanted, 64)
    # Sums of the same numbers and zeros, possibly in another order.
    torch.testing.assert_close(velocity(transformer), base, rtol=0, atol=2e-6)
    trained = TrainedWeights(transformer, ["x_embedder"])
    velocity(transformer).pow(2).sum().backward()
    assert bool(trained.named_parameters()["transformer.x_embedder.weight"].grad[:, 64:].any())
    shake(trained)
    (folder,) = trained.export(tmp_path, INFO)
    assert torch.equal(velocity(FluxTransformer2DModel.from_pretrained(folder)), velocity(transformer))


def test_a_lora_on_wider_inputs_is_exported(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    widen_x_embedder(transformer, "control")
    lora = add_lora(transformer, LoRAOptions(["attention", "x_embedder"], rank=2))
    shake(lora)
    (path,) = lora.export(tmp_path, INFO)
    second = tiny_transformer()
    widen_x_embedder(second, "control")
    add_lora(second, LoRAOptions(["attention", "x_embedder"], rank=2), init_from=path)
    torch.testing.assert_close(velocity(second), velocity(transformer), rtol=1e-5, atol=1e-5)


def test_inputs_that_cannot_be_widened_are_refused() -> None:
    transformer = tiny_transformer()
    with pytest.raises(ValueError, match="`channels` is 'depth'; expected a number or one of"):
        widen_x_embedder(transformer, "depth")
    with pytest.raises(ValueError, match="`channels` is 64, but `x_embedder` takes 64 already"):
        widen_x_embedder(transformer, 64)
    add_lora(transformer, LoRAOptions(["x_embedder"], rank=2))
    with pytest.raises(ValueError, match="only a plain Linear can be widened"):
        widen_x_embedder(transformer, 128)
