"""Plans from sizes alone: the released models and methods, on the meta device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from transformers import AutoConfig, CLIPTextModel, T5EncoderModel

from ..checkpoints.messages import naming
from ..checkpoints.model_configs import building, read_model_config
from ..checkpoints.pipeline_folders import check_types
from ..models.planned_packing import pack_on_paper
from ..models.released import VAE, clip_text, t5_text
from ..offload.blocks import streamable_blocks
from ..offload.budget.plan import VRAMPlan
from ..offload.budget.planner import plan_vram
from .method import Release
from .releases import check_counts, released_modules, releases


FLUX_DEV = "FLUX.1-dev"


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with bfloat16 weights on the meta device.

    Args:
        make (`Callable`): Builds it.

    Returns:
        `torch.nn.Module`
    """
    with torch.device("meta"):
        module = make()
    # Not the library's own `to`, which warns of what it would do to weights that mean something.
    return nn.Module.to(module, torch.bfloat16)


def flux_models(model: str = FLUX_DEV, **transformer: Any) -> dict[str, nn.Module]:
    """Return the models of a FLUX.1 pipeline on the meta device.

    Args:
        model (`str`, *optional*, defaults to `"FLUX.1-dev"`):
            FLUX.1-dev, whose sizes are built in, or a folder or repository of a pipeline, whose configs are read.
        transformer: Entries of the transformer's config to change.

    Returns:
        `dict[str, torch.nn.Module]`: in bfloat16.

    Raises:
        OSError: if there is no such folder or repository.
        ValueError: if a config of the folder is broken, or does not describe a model.
    """
    if model == FLUX_DEV:
        configs: dict[str, Any] = {"transformer": {"guidance_embeds": True}, "vae": VAE}
        make: dict[str, Callable[[], nn.Module]] = {"text_encoder": clip_text, "text_encoder_2": t5_text}
    else:
        kinds: dict[str, Any] = {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL}
        configs = {name: _read_config(model, name, kind.load_config, kind) for name, kind in kinds.items()}
        encoders: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
        make = {
            name: partial(kind, _read_config(model, name, AutoConfig.from_pretrained))
            for name, kind in encoders.items()
        }
    make["transformer"] = lambda: FluxTransformer2DModel.from_config({**configs["transformer"], **transformer})
    make["vae"] = lambda: AutoencoderKL.from_config(configs["vae"])
    return {name: _make(model, name, build) for name, build in make.items()}


def _make(model: str, name: str, build: Callable[[], nn.Module]) -> nn.Module:
    with building(_config_path(model, name)):
        return on_meta(build)


def _config_path(model: str, name: str) -> str:
    return os.path.join(model, name, "config.json")


def _read_config(model: str, name: str, read: Callable[..., Any], kind: Any = None) -> Any:
    """Read a component's config from a folder or a repository."""
    if not os.path.isdir(model):
        return read(model, subfolder=name)
    content = read_model_config(_config_path(model, name))
    if kind is not None:
        with naming(_config_path(model, name)):
            check_types(kind, content)
    with building(_config_path(model, name)):
        return read(os.path.join(model, name))


def plan_methods(
    methods: Sequence[tuple[str, int | None]] = (),
    model: str = FLUX_DEV,
    budget_gib: float = 8,
    quantization: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> VRAMPlan:
    """Plan several methods together from sizes alone, without loading weights.

    Args:
        methods (`Sequence[tuple[str, int or None]]`, *optional*):
            Names of [`~releases.releases`], each with how many entities, references, images and so on.
        model (`str`, *optional*, defaults to `"FLUX.1-dev"`): See [`flux_models`].
        budget_gib (`float`, *optional*, defaults to 8): The budget.
        quantization (`Mapping[str, str]`, *optional*):
            How models are quantised, by their names: `{"transformer": "gguf-q4_k", "text_encoder_2": "gguf-q8_0"}`.
            The kinds are those of [`~models.planned_packing.KINDS`].
        kwargs: The other arguments of [`plan_vram`].

    Returns:
        `VRAMPlan`

    Raises:
        VRAMBudgetError: if the budget is too small.
        ValueError: if a name is unknown, a method takes no number, or two need different transformers.
    """
    check_counts(methods)
    known = releases()
    chosen = [(known[name], count) for name, count in methods]
    models = flux_models(model, **_changes([release for release, _ in chosen]))
    for name, kind in (quantization or {}).items():
        if name not in models:
            raise ValueError(f"`quantization` names {name!r}, but the models are {sorted(models)}.")
        pack_on_paper(models[name], kind, streamable_blocks(models[name]))
    for release, _ in chosen:
        models |= {name: on_meta(make) for name, make in released_modules(release.name).items()}
    added = [release.demand(release.count if count is None else count) for release, count in chosen]
    # Arguments have been checked by now, so errors of a library come from the configs.
    with building(model, passing=(ValueError,), what="a FLUX.1 pipeline that can run"):
        return plan_vram(models, budget_gib, added=added, **kwargs)


def _changes(chosen: Sequence[Release]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    by: dict[str, str] = {}
    for release in chosen:
        for key, value in release.transformer.items():
            if changes.setdefault(key, value) != value:
                raise ValueError(
                    f"{by[key]!r} and {release.name!r} need different transformers (`{key}`). Plan one of them."
                )
            by.setdefault(key, release.name)
    return changes
