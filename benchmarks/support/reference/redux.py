"""The reference's Redux at any size: it has the released widths, and the zeros of those widths, as constants."""

import types
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import ReduxImageEncoder
from torch import nn
from transformers import SiglipVisionModel

from benchmarks.support.reference.boot import import_reference
from benchmarks.support.reference.ip_adapter import reference_siglip


flux_redux = import_reference("diffsynth.models.flux_redux")
flux_image = import_reference("diffsynth.pipelines.flux_image")


def with_constants(function: Callable[..., Any], replaced: Mapping[Any, Any]) -> Callable[..., Any]:
    """The same function with other constants in its code."""
    code = function.__code__
    assert replaced.keys() <= set(code.co_consts)
    constants = tuple(
        replaced.get(value, value) if isinstance(value, (int, tuple)) else value for value in code.co_consts
    )
    changed = types.FunctionType(code.replace(co_consts=constants), function.__globals__)
    changed.__defaults__, changed.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return changed


def reference_redux(embedder: ReduxImageEncoder) -> nn.Module:
    """The reference's `FluxReduxImageEncoder` of the same sizes."""
    module = flux_redux.FluxReduxImageEncoder(embedder.config.redux_dim, embedder.config.txt_in_features)
    module.load_state_dict(embedder.state_dict())
    return module.eval().requires_grad_(False)


def redux_unit(embedder: ReduxImageEncoder, pooled_width: int) -> Any:
    """The reference's `FluxImageUnit_ReduxPromptEmbedder` for text of these widths."""
    widths = {4096: embedder.config.txt_in_features, (1, 768): (1, pooled_width)}
    unit = flux_image.FluxImageUnit_ReduxPromptEmbedder()
    unit.process = types.MethodType(with_constants(type(unit).process, widths), unit)
    return unit


def add_redux(pipe: Any, encoder: SiglipVisionModel, embedder: ReduxImageEncoder) -> None:
    """Give the reference's pipeline Redux with these weights."""
    pipe.flux_redux_image_encoder = reference_siglip(encoder)
    pipe.flux_redux_image_embedder = reference_redux(embedder)
    names = [type(unit).__name__ for unit in pipe.units]
    place = names.index("FluxImageUnit_ReduxPromptEmbedder")
    pipe.units[place] = redux_unit(embedder, pipe.dit.pooled_text_embedder[0].in_features)
