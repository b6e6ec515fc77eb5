"""Which calls are larger than the planned one."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from diffusers_flux_ext.offload.budget.demand import larger
from diffusers_flux_ext.offload.budget.estimate import Workload, activation_bytes


PLANNED = Workload(height=1024, width=1024)


@pytest.fixture(scope="module")
def transformer():
    """FLUX.1-dev of one block of each kind, without memory for its weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True).to(torch.bfloat16)


@pytest.mark.parametrize("side, text_tokens", [(1024, 512), (960, 884), (768, 1856), (512, 2816), (256, 3392)])
def test_text_may_take_the_place_of_a_smaller_image(transformer, side, text_tokens):
    call = Workload(height=side, width=side, text_tokens=text_tokens)
    assert larger(PLANNED, 1, call.image_tokens, text_tokens) is None
    assert activation_bytes(transformer, call)[0] <= activation_bytes(transformer, PLANNED)[0]


@pytest.mark.parametrize(
    "batch, side, text_tokens", [(1, 1024, 513), (1, 768, 1857), (1, 256, 3393), (1, 1040, 256), (2, 512, 512)]
)
def test_what_does_not_fit_is_larger(batch, side, text_tokens):
    call = Workload(height=side, width=side)
    found = larger(PLANNED, batch, call.image_tokens, text_tokens)
    assert found is not None
    assert found.batch == batch
    assert found.text_tokens == max(text_tokens, 512)
    assert found.image_tokens >= call.image_tokens


def test_a_plan_for_long_texts_holds_for_them_whatever_the_image():
    planned = Workload(height=256, width=256, text_tokens=1536)
    assert larger(planned, 1, 256, 1536) is None
    assert larger(planned, 1, 64, 1536) is None
    assert larger(planned, 1, 257, 512).image_tokens >= 257
