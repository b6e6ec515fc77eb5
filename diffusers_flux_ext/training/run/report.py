"""What a run would do, without doing it."""

from __future__ import annotations

from ..config.sections import TrainingConfig
from ..frozen import planned_bytes
from ..memory.needs import Setting, streamed_bytes
from .checks import check_run
from .differential import check_differential, stages
from .memory import fit_memory
from .model import DTYPES, empty_transformer
from .origin import data_hash


GIB = 2**30


def dry_run(config: TrainingConfig) -> str:
    """Check everything that can be checked without loading weights, and report on it.

    Args:
        config (`TrainingConfig`): The configuration.

    Returns:
        `str`: samples and sizes, layers and numbers that are trained, and the memory that weights and optimizer take.

    Raises:
        ValueError: if something is wrong.
    """
    if config.differential is not None:
        check_differential(config)
        return "\n".join(f"{stage.name}\n{_without_loras(stage.config)}" for stage in stages(config))
    data, report = check_run(config)
    config, plan = fit_memory(config, data)
    transformer = empty_transformer(config.model)
    lines = [str(report), f"Hash of the data: {data_hash(data)}"]
    total = sum(parameter.numel() for parameter in transformer.parameters())
    weights = planned_bytes(transformer, config.model.storage, DTYPES[config.model.dtype])
    stored = "" if config.model.storage is None else f", blocks in {config.model.storage}"
    lines.append(f"Transformer: {total:,} numbers, {weights / GIB:.2f} GiB in {config.model.dtype}{stored}")
    if config.model.resident_bytes is not None and plan is None:
        setting = Setting(config.model.storage, 1, resident=config.model.resident_bytes)
        streamed = streamed_bytes(transformer, setting, DTYPES[config.model.dtype])
        lines.append(f"Streamed: {len(streamed)} blocks, {sum(streamed) / GIB:.2f} GiB")
    trained = 0
    if config.train.lora is not None:
        layers = config.train.lora.layers(transformer)
        sizes = {name: transformer.get_submodule(name) for name in layers}
        trained += sum(
            rank * (sizes[name].in_features + sizes[name].out_features) for name, (rank, _) in layers.items()
        )
        lines.append(f"LoRA: {len(layers)} layers, about {trained:,} numbers")
    elif config.train.weights is not None:
        trained += total
        lines.append(f"Weights of the transformer: up to {total:,} numbers")
    # Values, gradients and two moments in float32.
    lines.append(f"Values, gradients and two moments in float32: {trained * 16 / GIB:.2f} GiB")
    tokens = max(((item.size[0] // 16) * (item.size[1] // 16) for item in data.items), default=0)
    lines.append(f"Largest image: {tokens} tokens, beside {config.data.text_length} of text")
    if plan is not None:
        lines.append(plan.describe())
    held = f", {config.data.held_out} of them held out" if config.data.held_out else ""
    lines.append(f"Samples: {len(data.items)}{held}; seed {config.seed}")
    return "\n".join(lines) + "\n"


def _without_loras(config: TrainingConfig) -> str:
    # Those of earlier runs do not exist yet, and all others have been found.
    return dry_run(config.model_copy(update={"train": config.train.model_copy(update={"base_loras": None})}))
