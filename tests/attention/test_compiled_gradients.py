"""Class-wise attention as an operator has the values and gradients of attention run class by class."""

from functools import partial

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from diffusers_flux_ext import AttentionRule, build_attention_plan
from diffusers_flux_ext.attention.compiled import attend_classes
from diffusers_flux_ext.sequence import JointLayout


@pytest.mark.parametrize("batch_size", [1, 2])
def test_values_and_gradients(batch_size):
    generator = torch.Generator().manual_seed(0)
    layout = JointLayout(("entity", "prompt", "target"), ("text", "prompt", "target"), (3, 4, 6), batch_size)
    allow = torch.rand(batch_size, 1, 6, generator=generator) < 0.5
    rules = [AttentionRule("entity", "target", allow), AttentionRule("entity", "prompt", False)]
    plan = build_attention_plan(layout, rules, mask_supported=False)
    assert (plan.table is None) == (batch_size > 1)
    query, key, value, gradient = torch.randn(4, batch_size, layout.total, 2, 8, generator=generator)

    def gradients(attend):
        inputs = [each.clone().requires_grad_() for each in (query, key, value)]
        output = attend(*inputs)
        return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]

    expected = gradients(partial(plan.attend, attention=dispatch_attention_fn))
    operator = partial(attend_classes, backend="")
    if plan.table is not None:
        found = gradients(partial(operator, table=plan.table))
    else:
        found = gradients(partial(plan.attend_samples, operator))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float(expected[1].abs().max()) > 0
