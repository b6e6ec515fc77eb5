"""Counting the memory of activations."""

import pytest
import torch

from diffusers_flux_ext.offload.budget.estimate import Workload, activation_bytes, meta_copy
from diffusers_flux_ext.offload.budget.live_bytes import peak_bytes
from diffusers_flux_ext.testing import tiny_components


WORK = Workload(height=64, width=96, batch=2, text_tokens=16, prompt_tokens=16, encoded_tokens=16)


def test_what_lives_at_once_is_counted():
    def call():
        one = torch.empty(1000, dtype=torch.float32)  # 4000
        two = one.view(10, 100).t()  # shares
        three = (two + 1).half()  # 4000 for the sum, then 2000
        del one, two
        four = torch.empty(500, dtype=torch.float64, device="meta")  # 4000
        return three, four

    assert peak_bytes(call) == 4000 + 4000 + 2000
    assert peak_bytes(lambda: torch.empty(3)) == 12


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_run_on_the_meta_device_counts_what_a_real_run_does(name):
    module = tiny_components(0)[name]
    counted, assumed = activation_bytes(module, WORK)
    assert not assumed

    def call():
        if name == "vae":
            return module.decode(torch.zeros(2, 16, 8, 12)).sample
        if name == "transformer":
            return module(
                hidden_states=torch.zeros(2, 24, 64),
                encoder_hidden_states=torch.zeros(2, 16, 40),
                pooled_projections=torch.zeros(2, 24),
                timestep=torch.zeros(2),
                img_ids=torch.zeros(24, 3),
                txt_ids=torch.zeros(16, 3),
                guidance=torch.zeros(2),
            )
        return module(torch.zeros(2, 77 if name == "text_encoder" else 16, dtype=torch.long))

    # The real run has all blocks, whose inputs weigh something at these sizes, and PyTorch's attention for CPUs.
    assert peak_bytes(call, fused_attention=False) == pytest.approx(counted, rel=0.12)


def test_the_module_that_is_measured_stays_as_it_is():
    module = tiny_components(0)["transformer"]
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    twin = meta_copy(module)
    assert len(twin.transformer_blocks) == len(twin.single_transformer_blocks) == 1
    assert all(weight.is_meta for weight in twin.parameters())
    assert len(module.transformer_blocks) == 2
    assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())
