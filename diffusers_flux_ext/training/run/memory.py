"""Fitting a run's configuration to a budget of memory."""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from transformers import AutoConfig, CLIPTextModel, T5EncoderModel

from ...tiny import named_model
from ..config.model_section import ModelSection
from ..config.sections import TrainingConfig
from ..data import TrainingData
from ..memory import MemoryPlan, choose_setting, count_activations, predict, read_budget
from ..memory.plan import GB
from ..trained import LoRAOptions
from .encoders import recall_hashes
from .model import DTYPES, empty_transformer


def fit_memory(config: TrainingConfig, data: TrainingData) -> tuple[TrainingConfig, MemoryPlan | None]:
    """Choose storage, checkpointing, streaming, batches and cache so that a run fits `train.memory`.

    Args:
        config (`TrainingConfig`): The configuration.
        data (`TrainingData`): The data, after [`check_data`], whose largest image counts.

    Returns:
        `tuple[TrainingConfig, MemoryPlan]`: the configuration with what was chosen, and the plan; the configuration as
        it is and `None` without a budget.

    Raises:
        ValueError: if nothing fits.
    """
    section, lora = config.train, config.train.lora
    if section.memory is None or lora is None:
        return config, None
    budget, plan = read_budget(section.memory), make_plan(config, data, lora)
    encoding_fits = plan.encoding <= budget or recall_hashes(config) is not None
    if not encoding_fits and config.model.device != "cpu":
        raise ValueError(
            f"Encoding the samples takes about {plan.encoding / 1e9:.1f} GB, more than `train.memory` "
            f"{section.memory}. Set `data.cache` and fill it without the GPU, by the same command with "
            f"`--stage cache` and `model.device=cpu`. Then run it as it is."
        )
    setting = plan.setting
    model = {
        "storage": setting.storage,
        "gradient_checkpointing": setting.checkpointing or False,
        "offload_activations": setting.offload,
        "resident": None if setting.resident is None else f"{setting.resident / GB:.1f}GB",
    }
    run = {"batch_size": setting.batch_size, "accumulation": _total(config) // setting.batch_size}
    cache = config.data.cache or f"{config.output}/cache" if setting.cache else None
    changes: dict[str, Any] = {
        "model": config.model.model_copy(update=model),
        "run": config.run.model_copy(update=run),
        "data": config.data.model_copy(update={"cache": cache}),
    }
    return config.model_copy(update=changes), plan


def make_plan(config: TrainingConfig, data: TrainingData, lora: LoRAOptions) -> MemoryPlan:
    """Make the plan of [`fit_memory`]."""
    transformer, dtype = empty_transformer(config.model), DTYPES[config.model.dtype]
    height, width = max((item.size for item in data.items), key=math.prod)
    token = 2 * vae_scale(config.model)
    tokens = (height // token) * (width // token)
    kept = count_activations(transformer.config, dtype, tokens, config.data.text_length, lora)
    encoders, encoding = encoder_bytes(config.model, height, width)
    needs = partial(
        predict, transformer, kept, dtype=dtype, trained=16 * trained_numbers(transformer, lora), encoders=encoders
    )
    stored = config.model.storage
    storages: list[str | None] = [None, "fp8"] if stored is None else [stored]
    if stored is None and lora.kind == "lora" and importlib.util.find_spec("bitsandbytes"):
        storages.append("nf4")
    # A teacher draws with the whole transformer, and tables of 4 bits do not move.
    streamed = [] if config.distill is not None or stored == "nf4" else [stored or "fp8"]
    total = _total(config)
    sizes = [size for size in range(1, total + 1) if total % size == 0]
    budget = read_budget(str(config.train.memory))
    caches = [True] if config.data.cache is not None else [False, True]
    return choose_setting(
        budget, needs, encoding, storages=storages, streamed=streamed, batch_sizes=sizes, caches=caches
    )


def trained_numbers(transformer: Any, lora: LoRAOptions) -> int:
    """Return how many numbers a LoRA has, without counting factors that are shared."""
    layers = {name: (rank, transformer.get_submodule(name)) for name, (rank, _) in lora.layers(transformer).items()}
    return sum(rank * (layer.in_features + layer.out_features) for rank, layer in layers.values())


def encoder_bytes(section: ModelSection, height: int, width: int) -> tuple[int, int]:
    """Return what the encoders of a model take, and the peak while an image is encoded.

    Args:
        section (`ModelSection`): The model.
        height (`int`): Pixels of the largest image.
        width (`int`): Pixels.

    Returns:
        `tuple[int, int]`: bytes.
    """
    path, options = named_model(section.path), {} if section.revision is None else {"revision": section.revision}
    with init_empty_weights(include_buffers=True), torch.device("meta"):
        clip = AutoConfig.from_pretrained(path, subfolder="text_encoder", **options)
        t5 = AutoConfig.from_pretrained(path, subfolder="text_encoder_2", **options)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(path, subfolder="vae", **options))
        models: list[Any] = [CLIPTextModel(getattr(clip, "text_config", clip)), T5EncoderModel(t5), vae]
    size = DTYPES[section.dtype].itemsize
    weights = size * sum(parameter.numel() for model in models for parameter in model.parameters())
    # Four tensors of the VAE's first stage are there at once: its input, the branch, its norm and the sum.
    return weights, weights + 4 * size * vae.config.block_out_channels[0] * height * width


def vae_scale(section: ModelSection) -> int:
    """Return how many pixels a latent stands for in each direction."""
    options = {} if section.revision is None else {"revision": section.revision}
    config = AutoencoderKL.load_config(named_model(section.path), subfolder="vae", **options)
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _total(config: TrainingConfig) -> int:
    return config.run.batch_size * config.run.accumulation
