"""What the tests of IP-Adapters share."""

import pytest

from diffusers_flux_ext import FluxConditionedPipeline
from tests.fixtures.ip_adapter import KINDS, tiny_ip_adapter
from tests.fixtures.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


@pytest.fixture(scope="module", params=KINDS)
def adapter(request):
    return tiny_ip_adapter(1, **KINDS[request.param])
