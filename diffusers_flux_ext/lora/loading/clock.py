"""The clock that tells the LoRAs in a transformer the timesteps of the current call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..._sharing import guard_forward, unguard_forward
from ..updates.modules import sinusoids


_ATTRIBUTE = "_flux_ext_clock"


class TimestepClock:
    """Records the timesteps of every call of a transformer, for the LoRAs in it."""

    def __init__(self, transformer: nn.Module) -> None:
        self.timestep: Tensor | None = None
        self.embedding: Tensor | None = None
        self.configs: list[Any] = []
        # The time is valid for one forward pass, so one thread at a time may run it.
        guard_forward(transformer)
        self.handles = [
            transformer.register_forward_pre_hook(self.before, with_kwargs=True),
            transformer.register_forward_hook(self.after, prepend=True, always_call=True),
        ]

    def before(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook of the transformer."""
        hidden_states = args[0] if args else kwargs["hidden_states"]
        timestep = args[3] if len(args) > 3 else kwargs["timestep"]
        # As the transformer itself does, which takes timesteps in [0, 1].
        self.timestep = timestep.to(hidden_states.dtype) * 1000
        self.embedding = None
        if not torch.compiler.is_compiling() and not self.is_used(transformer):
            drop_unused_clock(transformer)

    def after(self, transformer: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the transformer."""
        self.timestep = self.embedding = None

    def read(self, size: int) -> Tensor:
        """Return the embedding of the timesteps of the current call, `(batch, size)` in float32."""
        if self.timestep is None:
            raise RuntimeError("A timestep LoRA runs only inside a call of its transformer, which has the timestep.")
        if self.embedding is None or self.embedding.shape[1] != size:
            self.embedding = sinusoids(self.timestep, size)
        return self.embedding

    def is_used(self, transformer: nn.Module) -> bool:
        """Whether the transformer still has one of the LoRAs that the clock is for."""
        present = getattr(transformer, "peft_config", {}).values()
        return any(config is other for config in present for other in self.configs)


def connect_clock(transformer: nn.Module, adapter_name: str) -> None:
    """Connect the updates of an adapter with the clock of their transformer."""
    clock = getattr(transformer, _ATTRIBUTE, None) or TimestepClock(transformer)
    setattr(transformer, _ATTRIBUTE, clock)
    clock.configs.append(transformer.peft_config[adapter_name])  # type: ignore[index]
    for layer in transformer.modules():
        if isinstance(layer, BaseTunerLayer) and adapter_name in layer.lora_B:
            layer.lora_B[adapter_name].clock = clock


def drop_unused_clock(model: nn.Module) -> None:
    """Remove the clock from a model that no longer has a timestep LoRA."""
    clock: TimestepClock | None = getattr(model, _ATTRIBUTE, None)
    if clock is not None and not clock.is_used(model):
        for handle in clock.handles:
            handle.remove()
        delattr(model, _ATTRIBUTE)
        unguard_forward(model)
