"""What a `vram_config` leaves out is filled in as the reference does."""

import pytest
import torch

from benchmarks.support.reference import import_reference
from diffusers_flux_ext.diffsynth.vram import STAGES, _ladder


layers = import_reference("diffsynth.core.vram.layers")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"offload_dtype": "disk"},
        {"offload_dtype": "disk", "onload_device": "cpu", "onload_dtype": torch.float8_e4m3fn},
        {"offload_device": "cpu", "preparing_dtype": torch.float32},
    ],
)
def test_defaults(given):
    config = {**given, "computation_dtype": torch.bfloat16, "computation_device": "cuda"}
    module = layers.AutoTorchModule(**config)
    ladder = _ladder(config, "")
    assert [getattr(module, f"{stage}_dtype") for stage in STAGES] == list(ladder.dtypes)
    assert [getattr(module, f"{stage}_device") for stage in STAGES] == list(ladder.devices)
