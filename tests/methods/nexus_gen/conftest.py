"""A pipeline with a tiny language model, which no test changes."""

from typing import Any

import pytest

from benchmarks.support.tiny.nexus_gen import nexus_components
from diffusers_flux_ext import FluxNexusGenPipeline
from diffusers_flux_ext.testing import tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(FluxNexusGenPipeline, **nexus_components())
