"""AttriCtrl against the reference's: the encoder, loops with one and two values, true CFG."""

import pytest
import torch

from benchmarks.support.parity.loop import TOLERANCE, our_images, reference_images
from benchmarks.support.reference import reference_pair, reference_value_encoder
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from diffusers_flux_ext import FluxAttributeControlPipeline, FluxFlowMatchScheduler
from diffusers_flux_ext.testing import quiet


@pytest.fixture(scope="module")
def pair():
    both, encoder = reference_pair(seed=3), tiny_value_encoder(4)
    both.reference.value_controller = reference_value_encoder(encoder)
    components = {**both.components, "scheduler": FluxFlowMatchScheduler(), "value_encoder": encoder}
    return both.reference, quiet(FluxAttributeControlPipeline(**components))


@pytest.mark.parametrize("value", [0.0, 0.013, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [{}, {"num_tokens": 7, "embed_dim": 32}])
def test_the_encoder(value, sizes):
    encoder = tiny_value_encoder(2, **sizes)
    expected = reference_value_encoder(encoder)(torch.tensor([value, 1 - value]), torch.float32)
    tokens = [encoder(torch.tensor([part]), name)[0] for part, name in ((value, "brightness"), (1 - value, "detail"))]
    torch.testing.assert_close(torch.cat(tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("values", [[0.7], [0.2, 0.9]])
def test_the_loop(pair, values):
    reference, ours = pair
    expected = reference_images(reference, {"value_controller_inputs": values}).clamp(-1, 1)
    images = our_images(ours, attribute_values=dict(zip(["brightness", "detail"], values)))
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - our_images(ours)).abs().max() > 0.01


def test_true_cfg_has_the_values_on_both_branches(pair):
    reference, ours = pair
    theirs = {"value_controller_inputs": [0.7], "negative_prompt": "ugly", "cfg_scale": 2.0}
    expected = reference_images(reference, theirs).clamp(-1, 1)
    guided = {"attribute_values": {"brightness": 0.7}, "negative_prompt": "ugly", "true_cfg_scale": 2.0}
    images = our_images(ours, **guided)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - our_images(ours, negative_attribute_values=None, **guided)).abs().max() > 0.01
