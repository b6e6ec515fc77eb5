"""One forward pass under TeaCache: what is kept from the last one, and whether its blocks run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from .._compat import BaseState, borrow_weights
from .._compat.parallel import split_settings


# Published for FLUX.1 at https://github.com/ali-vilab/TeaCache, highest power first.
COEFFICIENTS = (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01)


class TeaCacheState(BaseState):
    """What one branch of guidance remembers of its last steps."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything when a new call begins."""
        self.step = 0
        self.accumulated = 0.0
        # Tensors once a step has run.
        self.timestep: Any = None
        self.modulated: Any = None
        self.residual: Any = None
        self.ids: Any = None
        self.layout: tuple[Any, ...] = ()
        self.norm_weights: dict[str, torch.Tensor] | None = None

    def reset_when_time_rises(self, timestep: torch.Tensor) -> None:
        """Reset when the timestep rises: it only falls within a call, so the previous call was interrupted."""
        timestep = timestep.detach().flatten()[:1].clone()
        if self.timestep is not None and bool(timestep.to(self.timestep) > self.timestep):
            self.reset()
        self.timestep = timestep


@dataclass
class RunningForward:
    """The running forward pass of a transformer.

    Attributes:
        transformer (`torch.nn.Module`): The transformer that runs.
        state (`TeaCacheState`): The state of its branch.
        arguments (`dict[str, Any]`): Arguments of the transformer.
        num_steps (`int`): Steps of the call.
        embedded (`torch.Tensor` of shape `(batch_size, image_length, dim)`, *optional*): The embedded image tokens.
        temb (`torch.Tensor` of shape `(batch_size, dim)`, *optional*): The embedded timestep, guidance and prompt.
        skips (`bool`, *optional*): Whether the blocks are skipped, once that is decided.
    """

    transformer: Any
    state: TeaCacheState
    arguments: dict[str, Any]
    num_steps: int
    embedded: Any = None
    temb: Any = None
    skips: bool | None = None

    def decide(self, threshold: float) -> bool:
        """Decide whether the blocks are skipped, at the same steps as the reference."""
        if self.skips is None and self.embedded is not None and self.temb is not None:
            self.skips = self._compare(threshold)
        return bool(self.skips)

    def finish_blocks(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Remember what the blocks and any residuals have added, or add what is remembered."""
        if self.skips:
            return self.embedded + self.state.residual
        self.state.residual = hidden_states - self.embedded
        return hidden_states

    def _compare(self, threshold: float) -> bool:
        state = self.state
        modulated = self._modulated_input()
        ids = torch.cat([self.arguments[name].reshape(-1, 3) for name in ("txt_ids", "img_ids")])
        layout = self._layout()
        skips = False
        if state.residual is not None and state.layout == layout and 0 < state.step < self.num_steps - 1:
            # One transfer to the host.
            state.accumulated += rescale(self._change(modulated, (ids != state.ids).any()).item())
            skips = state.accumulated < threshold
        if not skips:
            state.accumulated = 0.0
        state.modulated, state.layout, state.ids = modulated, layout, ids
        return skips

    def _change(self, modulated: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Return the relative change of the input, of all devices' tokens; infinite where tokens have moved."""
        before = self.state.modulated
        settings = split_settings(self.transformer)
        if settings is None:
            return torch.where(moved, torch.inf, (modulated - before).abs().mean() / before.abs().mean())
        sums = torch.stack([part.abs().sum(dtype=torch.float32) for part in (modulated - before, before, moved.int())])
        dist.all_reduce(sums, group=settings.group)
        return torch.where(sums[2] > 0, torch.inf, sums[0] / sums[1])

    def _modulated_input(self) -> torch.Tensor:
        block, state = self.transformer.transformer_blocks[0], self.state
        if state.step == 0:
            text = self.embedded[:, :0]
            inputs = {"hidden_states": self.embedded, "encoder_hidden_states": text, "temb": self.temb}
            state.norm_weights = borrow_weights(block, block.norm1, **inputs)
        weights = state.norm_weights or {}
        return torch.func.functional_call(block.norm1, weights, (self.embedded,), {"emb": self.temb})[0]

    def _layout(self) -> tuple[Any, ...]:
        """Return what must not change between steps, besides the tokens' positions."""
        given, embedded = self.arguments, self.embedded
        residuals = (given.get("controlnet_block_samples"), given.get("controlnet_single_block_samples"))
        return (
            embedded.shape,
            embedded.dtype,
            embedded.device,
            given["encoder_hidden_states"].shape,
            tuple(0 if samples is None else len(samples) for samples in residuals),
            tuple(sorted(given.get("joint_attention_kwargs") or ())),
        )


def rescale(change: float) -> float:
    """Return the published polynomial: from the change of the first block's input to that of the model's output."""
    value = 0.0
    for coefficient in COEFFICIENTS:
        value = value * change + coefficient
    return value
