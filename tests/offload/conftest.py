import pytest

from diffusers_flux_ext.offload.budget import placement as vram_placement
from diffusers_flux_ext.offload.budget import planner as vram
from tests.fixtures.vram import draw, pipeline


@pytest.fixture
def tiny_vram_numbers(monkeypatch):
    """No margin and no model too small to stream: these are tiny."""
    monkeypatch.setattr(vram, "MARGIN_BYTES", 0)
    monkeypatch.setattr(vram_placement, "SMALL", 2**14)


@pytest.fixture(scope="module")
def expected():
    return draw(pipeline())
