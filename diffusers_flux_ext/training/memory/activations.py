"""What autograd keeps of a transformer's forward pass, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch.overrides import TorchFunctionMode

from ..batch import TrainingBatch
from ..checkpointing import checkpoint_blocks
from ..module import FluxTraining
from ..trained import LoRAOptions, add_lora


@dataclass(frozen=True)
class Activations:
    """Bytes that a training step keeps for one sample.

    Args:
        double (`int`): For a double block.
        single (`int`): For a single block.
        double_input (`int`): For a double block that runs again in the backward pass: its inputs.
        single_input (`int`): For a single block that does.
        outside (`int`): Outside of the blocks.
        largest (`int`): The largest single tensor.
    """

    double: int
    single: int
    double_input: int
    single_input: int
    outside: int
    largest: int

    @property
    def largest_block(self) -> int:
        """What the larger kind of block keeps."""
        return max(self.double, self.single)


def count_activations(
    config: Mapping[str, Any], dtype: torch.dtype, tokens: int, text: int, lora: LoRAOptions | None = None
) -> Activations:
    """Count what a step keeps, with attention that keeps no weights, as GPUs' kernels do.

    Models of one and two blocks of each kind are run without weights, so it takes seconds for any size.

    Args:
        config (`Mapping[str, Any]`): The transformer's configuration.
        dtype (`torch.dtype`): Its data type.
        tokens (`int`): Tokens of the image.
        text (`int`): Tokens of the text.
        lora (`LoRAOptions`, *optional*): What is trained; the weights themselves by default.

    Returns:
        `Activations`
    """
    plain, checkpointed = (
        {size: _count(config, size, dtype, tokens, text, lora, every) for size in ((1, 1), (2, 1), (1, 2))}
        for every in (0, 1)
    )
    (double, single), inputs = (
        (kind[2, 1][0] - kind[1, 1][0], kind[1, 2][0] - kind[1, 1][0]) for kind in (plain, checkpointed)
    )
    largest = max(size for _, size in plain.values())
    return Activations(double, single, *inputs, plain[1, 1][0] - double - single, largest)


def _count(
    config: Mapping[str, Any], blocks: tuple[int, int], dtype: torch.dtype, tokens: int, text: int,
    lora: LoRAOptions | None, every: int,
) -> tuple[int, int]:  # fmt: skip
    # Private entries say which numbers were defaults, and would restore them.
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    small = {**own, "num_layers": blocks[0], "num_single_layers": blocks[1]}
    with init_empty_weights(include_buffers=True), torch.device("meta"):
        transformer: Any = FluxTransformer2DModel.from_config(small)
        for parameter in transformer.parameters():
            parameter.data = parameter.data.to(dtype)
        transformer.requires_grad_(lora is None)
        if lora is not None:
            add_lora(transformer, lora)
    checkpoint_blocks(transformer, every)
    batch = _batch(transformer.config, dtype, tokens, text)
    with FluxTraining(transformer) as training:
        sizes = saved_bytes(lambda: training.train()(batch), transformer.parameters())
    return sum(sizes), max(sizes)


def _batch(config: Any, dtype: torch.dtype, tokens: int, text: int) -> TrainingBatch:
    with torch.device("meta"):
        latents = torch.empty(1, tokens, config.in_channels)
        return TrainingBatch(
            latents, latents.clone(), torch.empty(1), torch.empty(tokens, 3),
            torch.empty(1, text, config.joint_attention_dim, dtype=dtype),
            torch.empty(1, config.pooled_projection_dim, dtype=dtype),
            torch.empty(1) if config.guidance_embeds else None,
        )  # fmt: skip


def saved_bytes(work: Callable[[], Any], parameters: Iterable[torch.Tensor] = ()) -> list[int]:
    """Return the bytes of everything that autograd keeps of a computation, each storage once.

    Args:
        work (`Callable`): The computation.
        parameters (`Iterable[torch.Tensor]`): Tensors that do not count, since they are there anyway.

    Returns:
        `list[int]`: a number for each storage.
    """
    known = {each.untyped_storage()._cdata for each in parameters}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in known:
            # The tensor itself, so that no other storage takes its place meanwhile.
            found[place] = tensor
        return tensor

    with _AttentionOfKernels(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return [tensor.untyped_storage().nbytes() for tensor in found.values()]


class _AttentionOfKernels(TorchFunctionMode):
    """Lets attention on the meta device keep what GPUs' kernels keep, instead of all attention weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            inputs = [*args[:3], *(given[name] for name in ("query", "key", "value")[len(args) :])]
            if inputs[0].is_meta:
                return _KernelAttention.apply(*inputs)
        return func(*args, **given)


class _KernelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        # Queries, keys, values, the output, and a float32 number for each row.
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])
