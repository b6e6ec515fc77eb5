"""The tokens of one call, split over devices for context parallelism (Ulysses).

Each device holds a part of the text and a part of the image. For attention they exchange heads for tokens: each then
holds all tokens of some of the heads, in the order of the devices, `[text_0, image_0, text_1, image_1, ...]`. Plans
and masks are about the joint order, `[text, image]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives


@dataclass(frozen=True, eq=False)
class SplitTokens:
    """How the tokens of one call are split.

    Args:
        num_text (`int`): Text tokens of the whole call.
        num_image (`int`): Image tokens of the whole call, references included.
        group (`torch.distributed.ProcessGroup`): The processes that share them.
        device (`torch.device`): This device, where the order of the tokens is kept for all layers.
    """

    num_text: int
    num_image: int
    group: Any
    device: torch.device

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each device."""
        counts = zip(_shares(self.num_text, self.degree), _shares(self.num_image, self.degree))
        return [text + image for text, image in counts]

    @cached_property
    def order(self) -> torch.Tensor:
        """The joint position of each token, `(num_text + num_image,)`, in the order of the devices."""
        text = torch.arange(self.num_text).tensor_split(self.degree)
        image = torch.arange(self.num_text, self.num_text + self.num_image).tensor_split(self.degree)
        return torch.cat([part for pair in zip(text, image) for part in pair]).to(self.device)

    @cached_property
    def restore(self) -> torch.Tensor:
        """The inverse of `order`."""
        return self.order.argsort()

    @property
    def degree(self) -> int:
        """The number of devices."""
        return int(dist.get_world_size(self.group))

    @property
    def rank(self) -> int:
        """The number of this device among them."""
        return dist.get_rank(self.group)

    @property
    def num_local_text(self) -> int:
        """Text tokens of this device."""
        return _shares(self.num_text, self.degree)[self.rank]

    def local(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Return this device's part of a tensor over image tokens, as diffusers splits the image itself.

        Args:
            tensor (`torch.Tensor`): A tensor with the image tokens in dimension `dim`.
            dim (`int`): That dimension.

        Returns:
            `torch.Tensor`
        """
        return tensor.tensor_split(self.degree, dim=dim)[self.rank]

    def mask_in_device_order(self, mask: torch.Tensor) -> torch.Tensor:
        """Return a dense mask over the joint sequence in the order in which the devices exchange tokens.

        Args:
            mask (`torch.Tensor` of shape `(..., length or 1, length or 1)`): A mask over queries and keys.

        Returns:
            `torch.Tensor` of the same shape
        """
        order, length = self.order.to(mask.device), self.num_text + self.num_image
        for dim in (-2, -1):
            mask = mask.index_select(dim, order) if mask.ndim >= -dim and mask.shape[dim] == length else mask
        return mask

    def all_tokens(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Exchange heads for tokens.

        Args:
            query, key, value (`torch.Tensor` of shape `(batch_size, local_length, heads, head_dim)`): Of this device.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: each of shape `(batch_size, length, local_heads,
            head_dim)`, in joint order.
        """
        local = torch.cat([query, key, value], dim=-1).transpose(0, 1)
        length, batch_size, heads, width = local.shape
        shares = _shares(heads, self.degree)
        sent = torch.cat([part.reshape(-1) for part in local.split(shares, dim=2)])
        own = batch_size * shares[self.rank] * width
        received = self._exchange(
            sent, [each * own for each in self.sizes], [length * batch_size * share * width for share in shares]
        )
        every = received.reshape(-1, batch_size, shares[self.rank], width).transpose(0, 1)
        joint = every.index_select(1, self.restore)
        query, key, value = joint.chunk(3, dim=-1)
        return query, key, value

    def own_tokens(self, tensor: torch.Tensor, heads: int) -> torch.Tensor:
        """Exchange tokens for heads, as the inverse of [`all_tokens`].

        Args:
            tensor (`torch.Tensor` of shape `(batch_size, length, local_heads, head_dim)`): In joint order.
            heads (`int`): Heads of all devices.

        Returns:
            `torch.Tensor` of shape `(batch_size, local_length, heads, head_dim)`
        """
        batch_size, _, own, width = tensor.shape
        shares, length = _shares(heads, self.degree), self.sizes[self.rank]
        sent = tensor.index_select(1, self.order).transpose(0, 1).reshape(-1)
        counts = [length * batch_size * share * width for share in shares]
        received = self._exchange(sent, counts, [each * batch_size * own * width for each in self.sizes])
        parts = [part.reshape(length, batch_size, share, width) for part, share in zip(received.split(counts), shares)]
        return torch.cat(parts, dim=2).transpose(0, 1)

    def _exchange(self, sent: torch.Tensor, received: list[int], given: list[int]) -> torch.Tensor:
        found = collectives.all_to_all_single(sent.contiguous(), received, given, self.group)
        return collectives.wait_tensor(found) if torch.compiler.is_compiling() else found


def _shares(count: int, degree: int) -> list[int]:
    """Split a number as `torch.tensor_split` does: the first ones get one more."""
    return [count // degree + (index < count % degree) for index in range(degree)]
