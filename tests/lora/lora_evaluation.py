"""What a state dict in any layout means, layer by layer, for comparisons."""

import torch

from benchmarks.support.lora_files.sizes import clip_modules, t5_modules, transformer_modules
from diffusers_flux_ext.lora.reading.read import read_lora


def flat_clip(name):
    return name.replace("text_encoder.text_model.", "text_encoder.")


def meaning(state_dict, metadata=None, adapter_config=None):
    """Dense updates, bias updates and replaced norms by diffusers name, in float64."""
    weights, biases, norms = {}, {}, {}
    for name, update in read_lora(state_dict, metadata, adapter_config).updates():
        name = flat_clip(name)
        delta, bias = update.dense(torch.float64), update.bias_delta(torch.float64)
        if delta is not None and delta.any():
            weights[name] = delta
        if bias is not None and bias.any():
            biases[name] = bias
        for part in ("set", "set_weight"):
            if part in update.parts:
                norms[name] = update.parts[part].double()
    return weights, biases, norms


def assert_same(found, expected, tolerance=1e-6):
    for got, wanted in zip(found, expected, strict=True):
        wanted = {name: value.double() for name, value in wanted.items() if value.any()}
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert got[name].shape == value.shape, name
            assert (got[name] - value).norm() <= tolerance * value.norm(), name


def expected_of(file):
    return file.expected, file.expected_bias, file.expected_norms


def assert_consistent(file):
    """A generated file holds tensors, and the changes that it means have the layers' shapes."""
    modules = {
        "transformer": transformer_modules(file.sizes),
        "text_encoder": clip_modules(file.sizes),
        "text_encoder_2": t5_modules(file.sizes),
    }
    assert file.state_dict
    assert file.expected
    for name, change in file.expected.items():
        component, _, module = name.partition(".")
        if "layer_norm" in name or "position_embedding" in name:
            continue
        shape = modules[component][module]
        if file.format == "bfl_control" and module == "x_embedder":
            shape = (shape[0], 2 * shape[1])
        assert (change.shape, change.dtype) == (shape, torch.float64), (file.format, file.case, name)
        assert change.isfinite().all()
        if "zero" not in file.case:
            assert change.any(), (file.format, file.case, name)


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def assert_bit_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert value.shape == second[key].shape, key
        assert torch.equal(bits(value), bits(second[key])), key
