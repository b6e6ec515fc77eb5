"""What diffusers' and the reference's own LoRA loaders, and this package, make of a generated file."""

import contextlib
import copy
import io
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.support.lora_files.build import LoRAFile, cut
from benchmarks.support.lora_files.config import pattern_value
from benchmarks.support.lora_files.factors import exact
from benchmarks.support.lora_files.layouts import LAYOUTS
from benchmarks.support.lora_files.sizes import Sizes
from benchmarks.support.lora_files.verdict import Reading, agrees
from diffusers_flux_ext.testing import copy_model, tiny_components


NAME, PEFT_NAME = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
COMPONENTS = ("transformer", "text_encoder", "text_encoder_2")
CONVERTERS = tuple(
    name for name in dir(lora_pipeline) if name.startswith("_convert_") and name.endswith("_to_diffusers")
)


def save_lora(file: LoRAFile, folder: Path) -> Path:
    """Writes the file with its header, and its sidecar beside it under the names that PEFT gives the two."""
    path = folder / (NAME if file.adapter_config is None else PEFT_NAME)
    save_file({name: tensor.contiguous() for name, tensor in file.state_dict.items()}, path, file.metadata)
    if file.adapter_config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(file.adapter_config))
    return path


@cache
def _tiny_components(sizes: Sizes) -> dict[str, Any]:
    return tiny_components(0, **sizes.transformer_overrides())


def components(sizes: Sizes) -> dict[str, Any]:
    """Fresh copies of the models; the rest is shared."""
    parts = _tiny_components(sizes)
    return {**parts, **{name: copy_model(parts[name]) for name in COMPONENTS}}


@cache
def _resized_converters(sizes: Sizes) -> ModuleType:
    source = Path(lora_conversion_utils.__file__).read_text()
    for old, new in (
        ("dims=[3072, 3072, 3072, 12288]", f"dims=[{sizes.width}] * 3 + [{sizes.hidden}]"),
        ("num_layers = 19", f"num_layers = {sizes.double}"),
        ("num_single_layers = 38", f"num_single_layers = {sizes.single}"),
        ("inner_dim = 3072", f"inner_dim = {sizes.width}"),
    ):
        if old not in source:
            raise ValueError(f"diffusers' converters no longer say {old!r}; adapt the list of replaced sizes")
        source = source.replace(old, new)
    module = ModuleType(lora_conversion_utils.__name__)
    module.__dict__.update(lora_conversion_utils.__dict__)
    exec(compile(source, lora_conversion_utils.__file__, "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def resized_diffusers(sizes: Sizes) -> Any:
    """Diffusers with the tiny model's sizes where its converters hard-code the released ones."""
    resized = _resized_converters(sizes)
    originals = {name: getattr(lora_pipeline, name) for name in CONVERTERS}
    try:
        for name in CONVERTERS:
            setattr(lora_pipeline, name, getattr(resized, name))
        yield
    finally:
        for name, original in originals.items():
            setattr(lora_pipeline, name, original)


def read_diffusers(file: LoRAFile, folder: Path) -> Reading:
    """`FluxPipeline.load_lora_weights`, read back from PEFT's layers."""
    pipe = FluxPipeline(**components(file.sizes))
    before = _norms(pipe)
    with resized_diffusers(file.sizes):
        pipe.load_lora_weights(str(save_lora(file, folder)))
    return peft_reading(pipe, before)


def _canonical(component: str, module: str) -> str:
    return f"{component}.{module.removeprefix('text_model.')}"


def peft_reading(pipe: Any, before: dict[str, Tensor]) -> Reading:
    """What PEFT's layers of all models add, and the norms that differ from `before`."""
    reading = Reading()
    for component in COMPONENTS:
        for module, layer in getattr(pipe, component).named_modules():
            if isinstance(layer, BaseTunerLayer):
                _add_layer(reading, _canonical(component, module), layer)
    reading.norms = _changed_norms(pipe, before)
    return reading


def _norms(pipe: Any) -> dict[str, Tensor]:
    weights = pipe.transformer.state_dict()
    return {key.removesuffix(".weight"): value.double() for key, value in weights.items() if ".attn.norm_" in key}


def _changed_norms(pipe: Any, before: dict[str, Tensor]) -> dict[str, Tensor]:
    after = _norms(pipe)
    return {f"transformer.{name}": value for name, value in after.items() if not torch.equal(value, before[name])}


def _add_layer(reading: Reading, name: str, layer: Any) -> None:
    for adapter in layer.active_adapters:
        parameters = [value for key, value in layer.named_parameters() if adapter in key]
        if any(value.is_meta for value in parameters):
            raise ValueError(f"{name}: its weights stay on the meta device")
        if adapter not in getattr(layer, "lora_A", {}):
            reading.weights[name] = layer.get_delta_weight(adapter).detach().double()
            continue
        up, down, scale = layer.lora_B[adapter], layer.lora_A[adapter], layer.scaling[adapter]
        reading.weights[name] = scale * exact(up.weight.detach()) @ exact(down.weight.detach())
        if up.bias is not None:
            reading.biases[name] = scale * exact(up.bias.detach())
        if adapter in layer.lora_magnitude_vector:
            reading.magnitudes[name] = exact(layer.lora_magnitude_vector[adapter].weight.detach())


def read_diffsynth(file: LoRAFile, folder: Path) -> Reading:
    """The reference's loader fusing into a model of zeros, so that the weights are the change."""
    from benchmarks.support.reference.boot import import_reference
    from benchmarks.support.reference.dit import reference_dit

    loader_class = import_reference("diffsynth.utils.lora.flux").FluxLoRALoader
    load_state_dict = import_reference("diffsynth.core.loader.file").load_state_dict
    dit = reference_dit(_tiny_components(file.sizes)["transformer"])
    for parameter in dit.parameters():
        parameter.zero_()
    loader = loader_class(device="cpu", torch_dtype=torch.float32)
    with contextlib.redirect_stdout(io.StringIO()):
        lora = loader.convert_state_dict(load_state_dict(str(save_lora(file, folder)), torch_dtype=torch.float32))
        loader.fuse_lora_to_base_model(dit, lora)
    return _fused_reading(dit, file.sizes)


def _fused_reading(dit: nn.Module, sizes: Sizes) -> Reading:
    reading, weights = Reading(), dit.state_dict()
    for unit in LAYOUTS["diffsynth"](sizes):
        cut(unit, reading.weights, weights[f"{unit.name}.weight"].double())
        cut(unit, reading.biases, weights[f"{unit.name}.bias"].double())
    return reading


def read_converted(file: LoRAFile, folder: Path) -> Reading:
    """This package's conversion to diffusers' layout, evaluated."""
    from diffusers_flux_ext import convert_lora

    state_dict, metadata = convert_lora(
        file.state_dict, to="diffusers", metadata=file.metadata, adapter_config=file.adapter_config
    )
    return diffusers_reading(state_dict, metadata)


def diffusers_reading(state_dict: dict[str, Tensor], metadata: dict[str, str] | None) -> Reading:
    """What a file in diffusers' layout means: `A`, `B`, `alpha`, `diff`, biases, magnitudes and PEFT's header."""
    reading, packed = Reading(), json.loads((metadata or {}).get("lora_adapter_metadata", "{}"))
    for key, value in state_dict.items():
        module, _, suffix = key.partition(".lora_")
        if key.endswith(".lora_B.weight"):
            name, down = module, state_dict[f"{module}.lora_A.weight"]
            scale = _scale(module, down.shape[0], state_dict, packed)
            reading.weights[_stripped(name)] = scale * exact(value) @ exact(down)
            if (bias := state_dict.get(f"{module}.lora_B.bias")) is not None:
                reading.biases[_stripped(name)] = scale * exact(bias)
        elif suffix.startswith("magnitude_vector"):
            reading.magnitudes[_stripped(module)] = exact(value)
        elif key.endswith(".diff"):
            reading.weights[_stripped(key[: -len(".diff")])] = exact(value)
        elif key.endswith(".diff_b"):
            reading.biases[_stripped(key[: -len(".diff_b")])] = exact(value)
        elif ".norm_" in key and key.endswith(".weight") and not suffix:
            reading.norms[key.removesuffix(".weight")] = exact(value)
    return reading


def _stripped(name: str) -> str:
    return name.replace(".text_model.", ".", 1)


def _scale(name: str, rank: int, state_dict: dict[str, Tensor], packed: dict[str, Any]) -> float:
    if (alpha := state_dict.get(f"{name}.alpha")) is not None:
        return alpha.double().sum().item() / rank
    component, _, module = name.partition(".")
    if f"{component}.r" not in packed:
        return 1.0
    config = {key.removeprefix(f"{component}."): value for key, value in packed.items()}
    alpha = pattern_value(config.get("alpha_pattern", {}), module, config["lora_alpha"])
    stated = pattern_value(config.get("rank_pattern", {}), module, config["r"])
    if stated != rank:
        raise ValueError(f"{name}: the header says rank {stated}, the tensors have {rank}")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def read_loaded(file: LoRAFile, folder: Path) -> Reading:
    """This package's pipeline with the file loaded: the change of every Linear's output."""
    from diffusers_flux_ext import FluxConditionedPipeline

    pipe = FluxConditionedPipeline(**components(file.sizes))
    before = _linears(pipe)
    norms, others = _norms(pipe), _other_weights(pipe)
    pipe.load_lora_weights(str(folder), weight_name=save_lora(file, folder).name, adapter_name="generated")
    reading = Reading(norms=_changed_norms(pipe, norms))
    for which, found in (("weight", reading.weights), ("bias", reading.biases)):
        after = _other_weights(pipe)[which]
        # What loading has added, such as a DoRA's factors, is no weight of the model.
        found.update({name: after[name] - value for name, value in others[which].items()})
    for name, (weight, bias) in _linears(pipe).items():
        old, old_bias = before[name]
        old = nn.functional.pad(old, (0, weight.shape[1] - old.shape[1]))
        reading.weights[name], reading.biases[name] = _difference(weight, old), _difference(bias, old_bias)
        if name in file.dora and agrees(weight, _normalised(old + file.expected[name], file.dora[name])):
            reading.weights[name], reading.magnitudes[name] = file.expected[name], file.dora[name]
    return reading


def _difference(new: Tensor, old: Tensor) -> Tensor:
    """The change, or zeros where it is rounding of float64 only."""
    change = new - old
    return change if change.abs().max() > 1e-12 else torch.zeros_like(change)


def _other_weights(pipe: Any) -> dict[str, dict[str, Tensor]]:
    """Weights and biases of the text encoders' norms and embeddings."""
    found: dict[str, dict[str, Tensor]] = {"weight": {}, "bias": {}}
    for component in ("text_encoder", "text_encoder_2"):
        for module, layer in getattr(pipe, component).named_modules():
            for which, values in found.items() if not hasattr(layer, "in_features") else ():
                if isinstance(value := getattr(layer, which, None), nn.Parameter):
                    values[_canonical(component, module)] = value.detach().double().clone()
    return found


def _normalised(weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's weight: every row of the given length, or every column where there is a magnitude for each."""
    dim = 1 if magnitude.ndim == 1 else 0
    return weight / weight.norm(dim=dim, keepdim=True) * (magnitude[:, None] if dim else magnitude)


def _linears(pipe: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of every Linear, from its outputs on zeros and on the identity."""
    found = {}
    for component in COMPONENTS:
        for module, layer in getattr(pipe, component).named_modules():
            inner = getattr(layer, "base_layer", layer)
            if isinstance(inner, nn.Linear) and not module.endswith("base_layer") and ".lora_" not in module:
                found[_canonical(component, module)] = _affine(layer, inner.in_features)
    return found


@torch.no_grad()
def _affine(layer: nn.Module, columns: int) -> tuple[Tensor, Tensor]:
    if (
        type(layer) is nn.Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and "forward" not in vars(layer)
    ):
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        return layer.weight.double(), bias.double()
    layer = copy.deepcopy(layer).double()
    bias = layer(torch.zeros(1, columns, dtype=torch.float64))[0]
    return (layer(torch.eye(columns, dtype=torch.float64)) - bias).T.contiguous(), bias
