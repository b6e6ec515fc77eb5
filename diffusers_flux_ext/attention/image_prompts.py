"""Image prompts: extra keys and values that the tokens of every block attend to, beside the joint attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from ..sequence import JointLayout


IMAGE_PROMPTS = "image_prompts"
"""Name of the attention argument that carries a tuple of [`ImagePrompt`]s."""


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """Keys and values of an IP-Adapter for every block, computed once and used at every step.

    A condition contributes `attention_kwargs={"image_prompts": (prompt,)}`; the tuples of several conditions are
    joined, and their parts are summed in each block.

    Args:
        keys (`torch.Tensor` of shape `(num_blocks, batch_size or 1, tokens, heads, head_dim)`):
            For the double blocks, or for the double blocks and then the single blocks.
        values (`torch.Tensor` of the same shape): Already multiplied by the scale.
        used (`tuple[bool, ...]`, *optional*): Whether each block's scale is not zero; all are used by default.
        mask (`torch.Tensor` of shape `(batch_size or 1, target_length)`, *optional*):
            Boolean; only these tokens of the target attend to the prompt; text and references do not.
        after_block (`bool`, defaults to `False`):
            Whether the result is added after the double block, as XLabs' adapters do, rather than to the attention's
            output before its projection.
        name (`str`, defaults to `"image prompt"`): What error messages call it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    used: tuple[bool, ...] | None = None
    mask: torch.Tensor | None = None
    after_block: bool = False
    name: str = "image prompt"


@dataclass(frozen=True, eq=False)
class PlacedPrompt:
    """An [`ImagePrompt`] on the tokens of one call, for one kind of blocks; its mask covers all image tokens."""

    keys: torch.Tensor
    values: torch.Tensor
    used: tuple[bool, ...] | None
    mask: torch.Tensor | None
    after_block: bool

    def attend(
        self, block: int | torch.Tensor, query: torch.Tensor, attention: Callable[..., torch.Tensor]
    ) -> torch.Tensor | None:
        """Attend from the tokens of a block to the prompt.

        Args:
            block (`int`, or `torch.Tensor` of shape `(1,)` in compiled blocks): Number of the block.
            query (`torch.Tensor` of shape `(batch_size, length, heads, head_dim)`): The tokens' queries.
            attention (`Callable`): Attention on tensors of that layout.

        Returns:
            `torch.Tensor` like `query`, or `None` where the scale is zero.
        """
        if self.used is not None and isinstance(block, int) and not self.used[block]:
            return None
        output = attention(query, _of_block(self.keys, block, query), _of_block(self.values, block, query))
        return output if self.mask is None else output * self.mask


@dataclass(frozen=True, eq=False)
class PlacedPrompts:
    """The image prompts of one call, for the attention processors.

    Args:
        double (`tuple[PlacedPrompt, ...]`): Those of the double blocks.
        single (`tuple[PlacedPrompt, ...]`): Those of the single blocks.
    """

    double: tuple[PlacedPrompt, ...]
    single: tuple[PlacedPrompt, ...]


def place_image_prompts(
    kwargs: Mapping[str, Any],
    transformer: FluxTransformer2DModel,
    layout: JointLayout,
    image_order: torch.Tensor | None,
) -> dict[str, Any]:
    """Place the image prompts among a call's attention arguments on its tokens.

    Args:
        kwargs (`Mapping[str, Any]`): The attention arguments.
        transformer (`FluxTransformer2DModel`): Gives the depth and the width.
        layout (`JointLayout`): The groups of tokens.
        image_order (`torch.Tensor` of shape `(image_length,)`, *optional*): How the image tokens are sorted.

    Returns:
        `dict[str, Any]`: the arguments; those without image prompts are unchanged.

    Raises:
        ValueError: if a prompt's depth, width, batch or mask does not fit.
    """
    prompts: Sequence[ImagePrompt] = kwargs.get(IMAGE_PROMPTS, ())
    if not prompts:
        return {name: value for name, value in kwargs.items() if name != IMAGE_PROMPTS}
    double, single = [], []
    for prompt in prompts:
        _check_prompt(prompt, transformer, layout)
        mask = _place_mask(prompt, layout, image_order)
        first = len(transformer.transformer_blocks)
        double.append(_part(prompt, slice(0, first), mask))
        if len(prompt.keys) > first:
            single.append(_part(prompt, slice(first, None), mask))
    return {**kwargs, IMAGE_PROMPTS: PlacedPrompts(tuple(double), tuple(single))}


def _of_block(stacked: torch.Tensor, block: int | torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    selected = stacked[block] if isinstance(block, int) else stacked.index_select(0, block.to(stacked.device))[0]
    return selected.expand(len(query), -1, -1, -1)


def _part(prompt: ImagePrompt, blocks: slice, mask: torch.Tensor | None) -> PlacedPrompt:
    used = None if prompt.used is None else prompt.used[blocks]
    return PlacedPrompt(prompt.keys[blocks], prompt.values[blocks], used, mask, prompt.after_block)


def _place_mask(prompt: ImagePrompt, layout: JointLayout, image_order: torch.Tensor | None) -> torch.Tensor | None:
    if prompt.mask is None:
        return None
    num_image = layout.total - layout.num_text_tokens
    mask = torch.nn.functional.pad(prompt.mask, (0, num_image - prompt.mask.shape[1]))
    if image_order is not None:
        mask = mask.index_select(1, image_order)
    return mask[:, :, None, None].to(prompt.values.dtype)


def check_adapter_fits(
    name: str, depth: int, heads: tuple[int, int], after_block: bool, transformer: FluxTransformer2DModel
) -> None:
    """Check an adapter's sizes against a transformer's.

    Args:
        name (`str`): What error messages call it.
        depth (`int`): Blocks that it has keys and values for.
        heads (`tuple[int, int]`): Number and width of its attention heads.
        after_block (`bool`): Whether it is added after the double blocks.
        transformer (`FluxTransformer2DModel`): The transformer.

    Raises:
        ValueError: if it was made for another depth or width.
    """
    double, single = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    wanted = (transformer.config.num_attention_heads, transformer.config.attention_head_dim)
    if depth not in (double, double + single) or heads != wanted:
        raise ValueError(
            f"The adapter of {name} has {depth} blocks of {heads[0] * heads[1]} channels in {heads[0]} heads, but the "
            f"transformer has {double} double and {single} single blocks of {wanted[0] * wanted[1]} channels in "
            f"{wanted[0]} heads. An adapter serves either the double blocks or all of them; load the one that was "
            f"trained for this model."
        )
    if after_block and depth != double:
        raise ValueError(
            f"The adapter of {name} is added after the blocks and has {depth} of them, but only the {double} double "
            f"blocks of the transformer allow that."
        )


def _check_prompt(prompt: ImagePrompt, transformer: FluxTransformer2DModel, layout: JointLayout) -> None:
    num_heads, head_dim = prompt.keys.shape[3:]
    check_adapter_fits(prompt.name, len(prompt.keys), (num_heads, head_dim), prompt.after_block, transformer)
    target = layout.lengths[layout.kinds.index("target")]
    batches = {len(tensor) for tensor in (prompt.keys[0], prompt.values[0], prompt.mask) if tensor is not None}
    if not batches <= {1, layout.batch_size} or (prompt.mask is not None and prompt.mask.shape[1] != target):
        shape = None if prompt.mask is None else tuple(prompt.mask.shape)
        raise ValueError(
            f"The {prompt.name} is for {sorted(batches)} samples and its mask has the shape {shape}, but the call has "
            f"{layout.batch_size} samples of {target} target tokens."
        )
