"""Class-wise attention as one opaque operator, so that compiled blocks do not depend on the regions."""

from functools import partial

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from .plan import attend_table


@torch.library.custom_op("diffusers_flux_ext::attend_classes", mutates_args=())
def attend_classes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, backend: str
) -> torch.Tensor:
    """Run the classes of an attention plan; for inference.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, length, heads, head_dim)`): The sorted sequence.
        table (`torch.Tensor` of shape `(runs, 4)`): The classes, see [`AttentionPlan`].
        backend (`str`): Attention backend of diffusers; empty for the active one.

    Returns:
        `torch.Tensor` of shape `(batch_size, length, heads, head_dim)`
    """
    attention = partial(dispatch_attention_fn, backend=backend or None)
    return attend_table(table, query, key, value, attention).contiguous()


@attend_classes.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, backend: str) -> torch.Tensor:
    return query.new_empty(query.shape)
