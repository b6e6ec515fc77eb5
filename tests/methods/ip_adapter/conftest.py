"""What the tests of IP-Adapters share."""

import pytest

from benchmarks.support.tiny.ip_adapter import KINDS, tiny_ip_adapter
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


@pytest.fixture(scope="module", params=KINDS)
def adapter(request):
    return tiny_ip_adapter(1, **KINDS[request.param])
