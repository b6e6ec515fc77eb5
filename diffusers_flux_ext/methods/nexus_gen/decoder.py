"""Reading a decoder of Nexus-Gen V2: a FLUX.1 transformer, and what makes its text tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...checkpoints.messages import naming
from ...models.transformer_flux_ext import FluxExtTransformer2DModel
from .adapter import NexusGenAdapter
from .checkpoint import ADAPTER, Source, split_decoder
from .merger import RELEASED_SECTION, NexusGenEditingMerger


def load_nexus_gen_decoder(
    source: Source,
    *,
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    mrope_section: Sequence[int] = RELEASED_SECTION,
    **overrides: Any,
) -> tuple[FluxExtTransformer2DModel, NexusGenAdapter | NexusGenEditingMerger]:
    """Load both parts of a published decoder of Nexus-Gen V2.

    See the [model](https://modelscope.cn/models/DiffSynth-Studio/Nexus-GenV2). The file is mapped, not read at once:
    loading needs the memory of the models and no more.

    Args:
        source (`str`, `Path` or `Mapping`):
            `generation_decoder.bin`, `edit_decoder.bin` (pickles, read with `weights_only=True`) or the state dict of
            one of them. Which one follows from the keys.
        dtype (`torch.dtype`, *optional*): Data type of the models; the file's by default.
        torch_dtype (`torch.dtype`, *optional*): The same by its older name.
        device (`str` or `torch.device`, *optional*): Device of the models; CPU by default.
        mrope_section (`tuple[int, int, int]`, defaults to `(16, 24, 24)`): See [`NexusGenEditingMerger`].
        overrides: See [`FluxExtTransformer2DModel.from_state_dict`].

    Returns:
        `tuple`: the transformer, and the [`NexusGenAdapter`] or the [`NexusGenEditingMerger`]; give them to a pipeline
        as `transformer` and as `generation_adapter` or `editing_adapter`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    dtype = torch_dtype if dtype is None else dtype
    placed: dict[str, Any] = {"torch_dtype": dtype, "device": device}
    adapter: NexusGenAdapter | NexusGenEditingMerger
    with naming(source):
        weights, part, beside = split_decoder(source)
        if part is ADAPTER:
            adapter = NexusGenAdapter.from_single_file(beside, **placed)
        else:
            adapter = NexusGenEditingMerger.from_single_file(beside, mrope_section=mrope_section, **placed)
        return FluxExtTransformer2DModel.from_state_dict(weights, **placed, **overrides), adapter
