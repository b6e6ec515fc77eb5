"""Weights in fewer bits, packed on the device."""

import numpy as np
import pytest
import torch

from benchmarks.gpu.packing import GGUF, KINDS


@pytest.mark.parametrize("kind", GGUF)
def test_blocks_are_those_of_llama_cpp(kind):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    weight[2, 32:64] = 0
    expected = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(GGUF[kind](weight).numpy(), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("GGUF", "quanto"))])
def test_packed_layers_compute_nearly_the_same(kind):
    pytest.importorskip("gguf" if kind.startswith("GGUF") else "optimum.quanto")
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.ModuleDict({"x_embedder": torch.nn.Linear(64, 64), "layer": torch.nn.Linear(64, 64)})
    for weight in model.parameters():
        weight.data.normal_(generator=generator)
    model.requires_grad_(False)
    inputs = torch.randn(3, 64, generator=generator)
    expected = {name: layer(inputs) for name, layer in model.items()}
    KINDS[kind](model, torch.float32)
    assert torch.equal(model["x_embedder"](inputs), expected["x_embedder"])
    change = (model["layer"](inputs) - expected["layer"]).std() / expected["layer"].std()
    assert 1e-4 < change < 0.2
