"""A LoRA that acts on each sample with a strength of its own, as a slider's does."""

from __future__ import annotations

from typing import Any

import torch

from .lora import TrainedLoRA


class Strengths:
    """Scales what the adapters of a LoRA add, sample by sample.

    What was set stays until something else is: gradient checkpointing runs blocks again in the backward pass.

    Args:
        lora (`TrainedLoRA`): The LoRA.

    Raises:
        ValueError: if it is of another kind, whose updates are no sum of a base and a scaled part.
    """

    def __init__(self, lora: TrainedLoRA) -> None:
        others = sorted({adapter.options.kind for adapter in lora.adapters.values()} - {"lora"})
        if others:
            raise ValueError(f"A slider needs the kind 'lora', whose strength is a factor; got {others}.")
        self._values: torch.Tensor | None = None
        self._hooks = []
        for adapter in lora.adapters.values():
            for path in adapter.sizes:
                layer: Any = adapter.model.get_submodule(path)
                self._hooks.append(layer.lora_B[adapter.name].register_forward_hook(self._scaled))

    def set(self, values: torch.Tensor | None) -> None:
        """Choose the strengths of the samples of the next call.

        Args:
            values (`torch.Tensor` of shape `(batch_size,)`, *optional*): The strengths; `None` is 1 for all.
        """
        self._values = values

    def remove(self) -> None:
        """Let the LoRA act on all samples alike again."""
        for hook in self._hooks:
            hook.remove()

    def _scaled(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if self._values is None:
            return output
        factors = self._values.to(output)
        return output * factors.view(-1, *[1] * (output.ndim - 1))
