"""Tiny pipelines for conditions, and what they draw."""

import copy
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch

from benchmarks.support.conditions.cases import CASES
from benchmarks.support.conditions.together import LORA
from benchmarks.support.tiny.lora_encoder import tiny_lora
from diffusers_flux_ext import FluxCondition, FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


# Inputs that say in which steps a condition takes part.
WINDOWS = ("start", "end", "control_stop")


@cache
def _pipeline(channels: int, lora: bool) -> Any:
    transformer = tiny_transformer(0, in_channels=64 + channels, out_channels=64)
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
    if lora:
        pipe.load_lora_weights({name: 0.3 * weight for name, weight in tiny_lora().items()})
    return pipe


class _OnTheCPU(FluxConditionedPipeline):
    # Asking all modules where they are would take a tenth of a call.
    _execution_device = torch.device("cpu")


@cache
def _remembering_pipeline(channels: int, lora: bool) -> Any:
    """The same with a text encoding that is made once per prompt."""
    pipe = copy.copy(_pipeline(channels, lora))
    pipe.__class__ = _OnTheCPU
    pipe.encode_prompt = _once(pipe.encode_prompt, key=lambda *args, **kwargs: repr((args, kwargs)))
    return pipe


def _once(function: Callable[..., Any], key: Callable[..., Any] = lambda *args: None) -> Callable[..., Any]:
    """The function, which runs once for each key of its arguments."""
    results: dict[Any, Any] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        name = key(*args, **kwargs)
        if name not in results:
            results[name] = function(*args, **kwargs)
        return results[name]

    return call


@cache
def _remembering_condition(name: str, change: str | None, channels: int, lora: bool) -> FluxCondition:
    """A condition that is encoded once: what `encode` makes depends on the pipeline and the canvas alone."""
    condition = CASES[name].build(change)
    encode = _once(condition.encode)
    object.__setattr__(condition, "encode", lambda parts, canvas: dict(encode(parts, canvas)))
    return condition


def _kind(names: tuple[str, ...]) -> tuple[int, bool]:
    """Channels of the transformer, and whether there is a LoRA."""
    return max((CASES[name].channels for name in names if name != LORA), default=0), LORA in names


def pipeline_for(*names: str) -> Any:
    """A pipeline whose transformer takes the channels that the named conditions add, with a LoRA if it is named."""
    return _pipeline(*_kind(names))


def draw(
    *names: str, change: str | None = None, steps: int = 2, guided: bool = True, output_type: str = "latent"
) -> torch.Tensor:
    """Latents, or float images, of a call with the named conditions in this order.

    The same prompt, canvas and conditions come hundreds of times, so what is made of them before the loop is kept.

    Args:
        names (`str`): Keys of `CASES`, or `LORA`.
        change (`str`, *optional*): The input of the first one that takes its other value.
        steps (`int`, defaults to 2): Denoising steps; an input of `WINDOWS` needs two.
        guided (`bool`, defaults to `True`): With a negative prompt, which takes twice as long.
        output_type (`str`, defaults to `"latent"`): `"pt"` for images.
    """
    return _draw(names, change, steps, guided, output_type).clone()


def draw_anew(*names: str) -> torch.Tensor:
    """Images, without what earlier calls made, for a pipeline that has been changed."""
    return _images(pipeline_for(*names), [CASES[name].build() for name in names if name != LORA])


@cache
def _draw(names: tuple[str, ...], change: str | None, steps: int, guided: bool, output_type: str) -> torch.Tensor:
    kind, parts = _kind(names), [name for name in names if name != LORA]
    # Copies: the same condition twice is two objects, as in a user's call.
    conditions = [
        copy.copy(_remembering_condition(name, None if index else change, *kind)) for index, name in enumerate(parts)
    ]
    return _images(_remembering_pipeline(*kind), conditions, steps, guided, output_type)


def _images(
    pipe: Any, conditions: list[FluxCondition], steps: int = 2, guided: bool = True, output_type: str = "pt"
) -> torch.Tensor:
    call = {"conditions": conditions, "num_inference_steps": steps, "output_type": output_type}
    guidance = {"negative_prompt": "ugly", "true_cfg_scale": 2.0} if guided else {}
    return pipe(**call_kwargs(**call, **guidance)).images
