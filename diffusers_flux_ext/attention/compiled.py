"""Class-wise attention as opaque operators, so that compiled blocks do not depend on the regions."""

from functools import partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from .plan import attend_table


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, backend: str
) -> torch.Tensor:
    attention = partial(dispatch_attention_fn, backend=backend or None)
    return attend_table(table, query, key, value, attention).contiguous()


@torch.library.custom_op("diffusers_flux_ext::attend_classes", mutates_args=())
def attend_classes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, backend: str
) -> torch.Tensor:
    """Run the classes of an attention plan.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, length, heads, head_dim)`): The sorted sequence.
        table (`torch.Tensor` of shape `(runs, 4)`): The classes, see [`AttentionPlan`].
        backend (`str`): Attention backend of diffusers; empty for the active one.

    Returns:
        `torch.Tensor` of shape `(batch_size, length, heads, head_dim)`
    """
    return _attend(query, key, value, table, backend)


@attend_classes.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, backend: str) -> torch.Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("diffusers_flux_ext::attend_classes_backward", mutates_args=())
def attend_classes_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of [`attend_classes`], which runs again for it.

    Args:
        gradient (`torch.Tensor` of shape `(batch_size, length, heads, head_dim)`): Gradient of its output.
        query, key, value, table, backend: Its arguments.

    Returns:
        `tuple` of three `torch.Tensor` of shape `(batch_size, length, heads, head_dim)`: of query, key and value.
    """
    # An operator runs below autograd, where only a functional transform records.
    pull_back = torch.func.vjp(partial(_attend, table=table, backend=backend), query, key, value)[1]
    one, two, three = (each.contiguous() for each in pull_back(gradient))
    return one, two, three


@attend_classes_backward.register_fake
def _(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *attend_classes_backward(gradient, *ctx.saved_tensors, ctx.backend), None, None


attend_classes.register_autograd(_backward, setup_context=_keep)
