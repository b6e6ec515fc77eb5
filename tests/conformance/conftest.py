"""A pipeline of each class, and what it draws."""

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from diffusers_flux_ext.testing import tiny_pipeline
from tests.fixtures.contract import CASES, CLASSES, Case, output_of


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def pipe(case: Case) -> Any:
    return tiny_pipeline(case.pipeline_class)


@pytest.fixture
def base(case: Case) -> torch.Tensor:
    return output_of(case, 3)


@pytest.fixture(params=CLASSES)
def pipeline_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def pair(pipeline_class: Any) -> tuple[Any, Any]:
    """`FluxPipeline` and one of ours, of equal components."""
    return tiny_pipeline(FluxPipeline), tiny_pipeline(pipeline_class)
