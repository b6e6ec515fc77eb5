"""The device, and models with random weights that are made on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTokenizer, T5TokenizerFast

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.sizes import Size
from diffusers_flux_ext import FluxConditionedPipeline, tiny_flux_path
from diffusers_flux_ext.methods.catalog import flux_models, on_meta
from diffusers_flux_ext.testing import tiny_components


T = TypeVar("T")
STD = 0.02


class Missing(Exception):
    """A row needs a package, a kernel or memory that is not there; says which."""


class Kit:
    """Makes what rows share, once for each section.

    Args:
        device (`torch.device`): Where everything runs.
        size (`Size`): Sizes of models and calls.
    """

    def __init__(self, device: torch.device, size: Size) -> None:
        self.device, self.size, self.clock = device, size, Clock(device)
        self.dtype: torch.dtype = getattr(torch, size.dtype)
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` makes, made once until [`forget`]."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def forget(self) -> None:
        """Drop everything that was made, and give its memory back."""
        self._made.clear()
        self.clock.empty()

    def filled(self, make: Callable[[], nn.Module], seed: int = 0) -> Any:
        """Build a module with random weights on the device, frozen and in eval mode.

        Args:
            make (`Callable`): Builds it on the default device; only its sizes are used.
            seed (`int`, defaults to 0): Seed of the weights.

        Returns:
            `torch.nn.Module`
        """
        return fill(on_meta(make).to(self.dtype), self.device, seed)

    def transformer(self) -> Any:
        """Build the transformer; a new one with the same weights whenever it is asked."""
        return self.filled(lambda: FluxTransformer2DModel.from_config(self.size.transformer))

    def shared_transformer(self) -> Any:
        """Return the transformer that the rows of a section share, on the device."""
        return self.once("transformer", self.transformer)

    def components(self, to: str | None = None) -> dict[str, Any]:
        """Build the components of a pipeline.

        Args:
            to (`str`, *optional*): Where each model goes as soon as it has its weights; it stays on the device.

        Returns:
            `dict[str, Any]`
        """
        if self.size.is_toy:
            place = to or self.device
            return {n: m.to(place) if isinstance(m, nn.Module) else m for n, m in tiny_components().items()}
        models = {}
        for name, model in flux_models().items():
            models[name] = fill(model, self.device).to(to or self.device)
            self.clock.empty()
        return {
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            # Their vocabularies are smaller than those of the released models.
            "tokenizer": CLIPTokenizer.from_pretrained(tiny_flux_path(), subfolder="tokenizer"),
            "tokenizer_2": T5TokenizerFast.from_pretrained(tiny_flux_path(), subfolder="tokenizer_2"),
            **models,
        }

    def pipeline(self, to: str | None = None) -> Any:
        """Return the pipeline that the rows of a section share; see [`components`] for `to`."""

        def make() -> Any:
            pipe = FluxConditionedPipeline(**self.components(to))
            pipe.set_progress_bar_config(disable=True)
            return pipe

        return self.once(f"pipeline on {to or self.device}", make)


def fill(module: nn.Module, device: torch.device, seed: int = 0) -> Any:
    """Give a module on the meta device random weights on another one: quickly, of sensible sizes, never zero matrices.

    Matrices are normal, norms are one and biases zero, as in a model that has not been trained.

    Args:
        module (`torch.nn.Module`): The module; its data types stay.
        device (`torch.device`): Where the weights are made.
        seed (`int`, defaults to 0): Seed of the weights.

    Returns:
        `torch.nn.Module`: the module, frozen and in eval mode.

    Raises:
        ValueError: if it has a buffer whose values are not known.
    """
    module = module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=STD, generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, buffer in module.named_buffers():
            if not name.endswith("position_ids"):
                raise ValueError(f"The buffer `{name}` of {type(module).__name__} has no known values.")
            buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    # Weights that were tied are not any more.
    tie: Any = getattr(module, "tie_weights", None)
    if tie is not None:
        tie()
    return module.eval().requires_grad_(False)
