"""Transformers quantised by every library that runs here, and the same models with their weights unpacked."""

import importlib.metadata
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig
from torch import nn

from benchmarks.support.conditions import CASES
from benchmarks.support.quantised.uses import CONTROL, USES, streamed
from benchmarks.support.single_files import t5_of_llama_cpp, write_gguf
from benchmarks.support.tiny.synthetic import AddedChannels
from diffusers_flux_ext import FluxConditionedPipeline, FluxExtTransformer2DModel
from diffusers_flux_ext.checkpoints.packed_weights import packed_layers, unpacked_weight
from diffusers_flux_ext.checkpoints.text_encoders import read_t5
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_text_encoder_2, tiny_transformer


AXES = (4, 6, 6)


def _gguf(kind: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = write_gguf(Path(folder) / "x.gguf", model.state_dict(), kind)
            config = GGUFQuantizationConfig(compute_dtype=torch.float32)
            return FluxExtTransformer2DModel.from_single_file(path, quantization_config=config, axes_dims_rope=AXES)

    return make


def _through_diffusers(make_config: Callable[[], Any]) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return FluxExtTransformer2DModel.from_pretrained(
                folder, quantization_config=make_config(), torch_dtype=torch.float32
            )

    return make


def _of_torchao(name: str, **arguments: Any) -> Callable[[], Any]:
    def make() -> Any:
        from torchao import quantization

        return getattr(quantization, name)(**arguments)

    return make


TORCHAO = {
    "int8": _of_torchao("Int8WeightOnlyConfig"),
    "int4": _of_torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "float8": _of_torchao("Float8WeightOnlyConfig"),
}


def _torchao(kind: str) -> Callable[[Any], Any]:
    def config() -> Any:
        from diffusers import TorchAoConfig

        # x_embedder takes what conditions add.
        return TorchAoConfig(TORCHAO[kind](), modules_to_not_convert=["x_embedder"])

    return _through_diffusers(config)


def _quanto(kind: str) -> Callable[[Any], Any]:
    def config() -> Any:
        from diffusers import QuantoConfig

        return QuantoConfig(weights_dtype=kind, modules_to_not_convert=["x_embedder"])

    return _through_diffusers(config)


def _bitsandbytes(kind: str) -> Callable[[Any], Any]:
    """The layers that diffusers would put in, which refuses to without an accelerator."""

    def make(model: Any) -> Any:
        return swap(FluxExtTransformer2DModel.from_state_dict(model.state_dict(), axes_dims_rope=AXES), kind)

    return make


def swap(model: Any, kind: str, kept: tuple[str, ...] = ("x_embedder",)) -> Any:
    """Replace the Linears of a model by those of bitsandbytes."""
    import bitsandbytes

    for path, layer in [(path, each) for path, each in model.named_modules() if isinstance(each, nn.Linear)]:
        if not path.endswith(kept):
            owner, _, name = path.rpartition(".")
            sizes = (layer.in_features, layer.out_features, layer.bias is not None)
            if kind == "nf4":
                new = bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
            else:
                new = bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.load_state_dict(layer.state_dict())
            setattr(model.get_submodule(owner), name, new.to("cpu").requires_grad_(False))
    return model


KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "GGUF Q8_0": ("gguf", _gguf("Q8_0")),
    "GGUF Q4_0": ("gguf", _gguf("Q4_0")),
    **{f"torchao {kind}": ("torchao", _torchao(kind)) for kind in TORCHAO},
    "quanto int8": ("optimum.quanto", _quanto("int8")),
    "quanto int4": ("optimum.quanto", _quanto("int4")),
    "quanto float8": ("optimum.quanto", _quanto("float8")),
    "bitsandbytes nf4": ("bitsandbytes", _bitsandbytes("nf4")),
    "bitsandbytes int8": ("bitsandbytes", _bitsandbytes("int8")),
}


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0, "num_inference_steps": 2}


def unpacked(model: Any) -> Any:
    """A model of its own with the weights that a quantised one computes with, in ordinary layers."""
    plain = FluxExtTransformer2DModel(**{k: v for k, v in model.config.items() if not k.startswith(("_", "quant"))})
    layers = packed_layers(model)
    own = {key for path in layers for key in (f"{path}.weight", f"{path}.bias")}
    weights = {
        key: weight for key, weight in model.state_dict().items() if key in plain.state_dict() and key not in own
    }
    for path in layers:
        layer = model.get_submodule(path)
        weights[f"{path}.weight"] = unpacked_weight(layer).float()
        if layer.bias is not None:
            weights[f"{path}.bias"] = layer.bias
    plain.load_state_dict({key: weight.detach().clone() for key, weight in weights.items()})
    return plain.eval()


@cache
def quantised_transformer(kind: str, channels: int = 0) -> Any:
    return KINDS[kind][1](tiny_transformer(0, in_channels=64 + channels, out_channels=64))


@cache
def unpacked_transformer(kind: str, channels: int = 0) -> Any:
    return unpacked(quantised_transformer(kind, channels))


def pipeline_of(transformer: Any) -> Any:
    return tiny_pipeline(FluxConditionedPipeline, transformer=transformer)


def both(kind: str, channels: int = 0) -> tuple[Any, Any]:
    """A pipeline with the quantised transformer, and one with its weights unpacked."""
    return tuple(pipeline_of(make(kind, channels)) for make in (quantised_transformer, unpacked_transformer))


# A condition leaves a pipeline as it was.
_both_for_conditions = cache(both)


def condition_difference(name: str, kind: str) -> float:
    """The largest difference of a pixel between quantised and unpacked with a condition."""
    images = [
        pipe(**call_kwargs(conditions=[CASES[name].build()], **GUIDED)).images
        for pipe in _both_for_conditions(kind, CASES[name].channels)
    ]
    return float((images[0] - images[1]).abs().max())


def use_difference(use: str, kind: str) -> float:
    """The same after the pipelines were set up by one of `USES`."""
    images = []
    for pipe in both(kind):
        with USES[use](pipe):
            conditions = [AddedChannels(width=64)] if use == CONTROL else None
            images.append(pipe(**call_kwargs(conditions=conditions, **GUIDED)).images)
    return float((images[0] - images[1]).abs().max())


@cache
def _t5(kind: str) -> tuple[Any, Any]:
    """T5 quantised as a kind has it, and unpacked."""
    plain = tiny_text_encoder_2(0)
    library, _, name = kind.partition(" ")
    if library == "GGUF":
        with tempfile.TemporaryDirectory() as folder:
            path = write_gguf(Path(folder) / "x.gguf", t5_of_llama_cpp(plain), name)
            config = GGUFQuantizationConfig(compute_dtype=torch.float32)
            packed = read_t5(path, quantization_config=config, relative_attention_max_distance=16)
    else:
        packed = tiny_text_encoder_2(0)
        _quantise_text(packed, library, name)
    for path in packed_layers(packed):
        plain.get_submodule(path).weight.data = unpacked_weight(packed.get_submodule(path)).detach().clone().float()
    return packed, plain


def _quantise_text(model: Any, library: str, kind: str) -> None:
    # T5 looks at the data type of `wo`, which transformers leaves as it is, too.
    if library == "torchao":
        from torchao.quantization import quantize_

        config = TORCHAO[kind]()
        quantize_(model, config, lambda layer, path: isinstance(layer, nn.Linear) and not path.endswith("wo"))
    elif library == "quanto":
        from optimum import quanto

        kinds = {"int8": quanto.qint8, "int4": quanto.qint4, "float8": quanto.qfloat8}
        quanto.quantize(model, weights=kinds[kind], exclude="*.wo")
        quanto.freeze(model)
    else:
        swap(model, kind, kept=("wo",))


def text_difference(use: str, kind: str) -> float:
    """The largest difference of a pixel between a quantised and an unpacked T5, set up by one of `TEXT_USES`."""
    images = []
    for encoder in _t5(kind):
        pipe = tiny_pipeline(FluxConditionedPipeline, text_encoder_2=encoder)
        with streamed(pipe.text_encoder_2) if "disk" in use else USES[use](pipe):
            images.append(pipe(**call_kwargs(**GUIDED)).images)
    return float((images[0] - images[1]).abs().max())


def kind_versions() -> str:
    """The versions of the libraries that quantise."""
    names = ("gguf", "torchao", "optimum-quanto", "bitsandbytes", "torch", "diffusers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) + "."
