"""What diffusers' FLUX.1 classes have, ours have: every public name, every argument, in its order, of its default."""

import inspect
from typing import Any

import pytest
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.loaders import FluxLoraLoaderMixin

import diffusers_flux_ext


PIPELINES = sorted(name for name in diffusers_flux_ext.__all__ if name.endswith("Pipeline"))
PAIRS: dict[str, tuple[type, type]] = {
    **{name: (FluxPipeline, getattr(diffusers_flux_ext, name)) for name in PIPELINES},
    "transformer": (FluxTransformer2DModel, diffusers_flux_ext.FluxExtTransformer2DModel),
    "controlnet": (FluxControlNetModel, diffusers_flux_ext.FluxExtControlNetModel),
    "vae": (AutoencoderKL, diffusers_flux_ext.AutoencoderKLFlux),
    "scheduler": (FlowMatchEulerDiscreteScheduler, diffusers_flux_ext.FluxFlowMatchScheduler),
}
CALLED = ("__init__", "__call__", "forward")
# Methods whose arguments differ on purpose, and why.
DIFFERENT: dict[tuple[str, str], str] = {
    ("FluxInsertAnythingPipeline", "__call__"): "the published steps and guidance of the method",
    ("FluxStep1XEditPipeline", "__call__"): "the published guidance of the method",
    ("FluxStep1XEditPipeline", "__init__"): "the method does without the text encoders of FLUX.1",
    ("vae", "__init__"): "the defaults are those of FLUX.1",
    ("scheduler", "__init__"): "the defaults are those of DiffSynth-Studio",
    ("transformer", "from_single_file"): "a file is needed, and other arguments are the constructor's",
    ("vae", "from_single_file"): "the same",
    **{(name, "from_single_file"): "the arguments are named" for name in PIPELINES},
}


def members(pair: str) -> list[str]:
    """Public names of the stock class; LoRA loading is compared with it in tests/lora."""
    stock = PAIRS[pair][0]
    return [
        name
        for name in dir(stock)
        if name in CALLED or not (name.startswith("_") or hasattr(FluxLoraLoaderMixin, name))
    ] + ["__init__"]


def arguments(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults; a list and a tuple of the same values are the same default."""
    return [
        (name, part.kind, list(part.default) if isinstance(part.default, tuple) else part.default)
        for name, part in inspect.signature(function).parameters.items()
    ]


def takes_the_same(stock: Any, ours: Any) -> bool:
    expected, taken = arguments(stock), arguments(ours)
    taken = [each for each in taken if each[1] is not inspect.Parameter.VAR_KEYWORD or each in expected]
    return taken[: len(expected)] == expected


@pytest.mark.parametrize("pair", PAIRS)
def test_nothing_is_missing(pair):
    assert [name for name in members(pair) if not hasattr(PAIRS[pair][1], name)] == []


@pytest.mark.parametrize("pair", PAIRS)
def test_members_take_what_the_stock_ones_take(pair):
    stock, ours = PAIRS[pair]
    own = {
        name
        for name in members(pair)
        if inspect.getattr_static(ours, name) is not inspect.getattr_static(stock, name)
        and callable(getattr(stock, name))
    }
    assert len(own) > 0
    different = {name for name in own if not takes_the_same(getattr(stock, name), getattr(ours, name))}
    assert different == {name for owner, name in DIFFERENT if owner == pair}
