"""Groups of tokens joined into one sequence, and the checks that they fit together."""

from collections.abc import Sequence

import torch

from .sequence import TokenGroup


def check_group(group: TokenGroup, like: torch.Tensor, latents: torch.Tensor) -> None:
    """Raise a `ValueError` unless a group fits the tokens that it joins.

    Args:
        group (`TokenGroup`): The group.
        like (`torch.Tensor` of shape `(batch_size, length, channels)`): Gives the number of channels.
        latents (`torch.Tensor` of shape `(batch_size, target_length, 64)`): Give batch, device and data type.
    """
    check_tensor(f"tokens of the group {group.name!r}", group.hidden_states, latents, None, like.shape[2])
    if tuple(group.ids.shape) != (group.length, 3):
        raise ValueError(
            f"The group {group.name!r} has {group.length} tokens, so its ids must have the shape ({group.length}, 3), "
            f"but theirs is {tuple(group.ids.shape)}."
        )


def check_tensor(
    what: str, tensor: torch.Tensor, latents: torch.Tensor, length: int | None, width: int | None
) -> None:
    """Raise a `ValueError` unless a tensor has the latents' batch, device and data type.

    Args:
        what (`str`): What it holds, in the plural, for errors.
        tensor (`torch.Tensor` of shape `(1 or batch_size, length, width)`): The tensor.
        latents (`torch.Tensor` of shape `(batch_size, target_length, 64)`): Give batch, device and data type.
        length (`int`, *optional*): Its number of tokens; any by default.
        width (`int`, *optional*): Its number of channels; any by default.
    """
    wanted = ("1 or " + str(latents.shape[0]), length or "any", width or "any")
    fits = (
        tensor.ndim == 3
        and tensor.shape[0] in (1, latents.shape[0])
        and tensor.shape[1] == (length or tensor.shape[1])
        and tensor.shape[2] == (width or tensor.shape[2])
    )
    if not fits:
        raise ValueError(f"The {what} have the shape {tuple(tensor.shape)}; expected {wanted}.")
    if tensor.device != latents.device or tensor.dtype != latents.dtype:
        raise ValueError(
            f"The {what} are {tensor.dtype} on {tensor.device}, but the latents are {latents.dtype} on "
            f"{latents.device}. Move the condition's inputs or its module with `.to(device, dtype)`."
        )


def join(tensors: Sequence[torch.Tensor], batch_size: int) -> torch.Tensor:
    """Concatenate tokens; those of batch 1 are repeated for every sample. A single tensor is returned as it is."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat([tensor.expand(batch_size, -1, -1) for tensor in tensors], dim=1)


def join_ids(groups: Sequence[TokenGroup]) -> torch.Tensor:
    """Concatenate the rotary positions of groups. Those of a single group are returned as they are."""
    if len(groups) == 1:
        return groups[0].ids
    return torch.cat([group.ids.to(groups[-1].ids) for group in groups])


def sort(tensor: torch.Tensor, order: torch.Tensor | None, dim: int) -> torch.Tensor:
    """Put a tensor's entries along `dim` into an order; `None` leaves the tensor as it is."""
    return tensor if order is None else tensor.index_select(dim, order)
