"""LoRAs that lie under what is trained: exact, frozen, and not exported with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from ...checkpoints.layouts import list_keys
from ...lora.errors import LoRAError, UnsupportedLoRAError, naming_files
from ...lora.files import LoRASource
from ...lora.reading.read import read
from ...lora.tools.fuse import fuse_lora_into
from ...lora.updates import LoRA, Update
from .lora import TrainedLoRA, add_lora
from .options import LoRAOptions


_COMPONENT = "transformer."


def lay_under(transformer: torch.nn.Module, source: LoRASource, name: str, weight: float = 1.0) -> TrainedLoRA:
    """Put a LoRA into a transformer as a frozen adapter in float32, on weights of any data type.

    Args:
        transformer (`FluxTransformer2DModel`): The model.
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): The LoRA, in any layout.
        name (`str`): PEFT's name of the adapter.
        weight (`float`, defaults to 1.0): How strongly it acts.

    Returns:
        `TrainedLoRA`: the adapter, which is not trained.

    Raises:
        LoRAError: if it cannot be read or does not fit.
        UnsupportedLoRAError: if it does something else than a LoRA of the transformer's layers.
    """
    with naming_files(source):
        updates = _updates(source)
        found = {path: _facts(path, update) for path, update in updates.items()}
        ranks = Counter(rank for rank, _ in found.values())
        options = LoRAOptions(
            list(found),
            rank=ranks.most_common(1)[0][0],
            ranks={path: rank for path, (rank, _) in found.items()},
            bias=any(biased for _, biased in found.values()),
        )
    lora = add_lora(transformer, options, name=name, init_from=source)
    with torch.no_grad():
        for parameter_name, parameter in lora.named_parameters().items():
            parameter.requires_grad_(False)
            if ".lora_B." in parameter_name:
                parameter.mul_(weight)
    return lora


def fuse_under(transformer: Any, sources: Mapping[str, float]) -> None:
    """Add LoRAs to the weights of a transformer: computed in float32, and rounded once to their data type.

    Args:
        transformer (`FluxTransformer2DModel`): The model, whose weights change.
        sources (`Mapping[str, float]`): Files with their weights.

    Raises:
        LoRAError: if one cannot be read or does not fit; nothing has changed then.
    """
    fused = fuse_lora_into(transformer.state_dict(), list(sources), weights=list(sources.values()))
    transformer.load_state_dict(fused)


def _updates(source: LoRASource) -> dict[str, Update]:
    found = dict(read(source).updates())
    foreign = [name for name in found if not name.startswith(_COMPONENT)]
    if foreign:
        raise UnsupportedLoRAError(
            f"It updates {len(foreign)} layers of text encoders, {list_keys(foreign)}, but only the transformer runs "
            f"in training. Take a LoRA of the transformer."
        )
    if not found:
        raise LoRAError("It updates no layer.")
    return {name.removeprefix(_COMPONENT): update for name, update in found.items()}


def _facts(path: str, update: Update) -> tuple[int, bool]:
    update.check_static(path)
    pair = update.to_lora()
    if type(pair.inner) is not LoRA or "magnitude" in pair.parts or pair.rank is None:
        raise UnsupportedLoRAError(
            f"It has a {update.title} for `{path}`, which cannot lie under a LoRA that is trained. Fuse it: "
            f"`fused: true`."
        )
    return pair.rank, "bias" in pair.parts
