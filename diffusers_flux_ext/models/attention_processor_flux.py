"""The attention processor that executes an attention plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

from .._compat import get_qkv_projections
from .compiled_attention import attend_classes


if TYPE_CHECKING:
    from ..attention_plan import AttentionPlan


class FluxRegionalAttnProcessor:
    """Attention of FLUX.1 that executes an [`AttentionPlan`].

    Without a plan it computes exactly what `FluxAttnProcessor` computes. It has no weights, works for double and
    single blocks, with fused projections and with every attention backend of diffusers.

    Args:
        image_only (`bool`, defaults to `False`):
            Whether the text tokens' attention is not needed, as in the last single block. Plans then skip it.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, image_only: bool = False) -> None:
        self.image_only = image_only
        self.stands_in_for: FluxAttnProcessor | None = None
        self.users = 0

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_plan: AttentionPlan | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Run one attention layer.

        Args:
            attn (`FluxAttention`): The layer that holds the projections.
            hidden_states (`torch.Tensor` of shape `(batch_size, length, dim)`):
                Image tokens of a double block, or the joint sequence of a single block.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, text_length, dim)`, *optional*):
                Text tokens of a double block.
            attention_mask (`torch.Tensor`, *optional*): Dense mask over the joint sequence.
            image_rotary_emb (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
                Cosines and sines, each `(length, head_dim)`.
            attention_plan (`AttentionPlan`, *optional*): Classes of tokens over the joint sequence.

        Returns:
            `torch.Tensor`, or image and text tokens as a `tuple` for a double block.
        """
        query, key, value = self._joint_heads(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            start = 0 if attention_plan is None else attention_plan.num_unrotated
            query, key = _rotate(query, image_rotary_emb, start), _rotate(key, image_rotary_emb, start)
        attention = partial(
            dispatch_attention_fn, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        if attention_plan is None:
            output = attention(query, key, value, attn_mask=attention_mask)
        else:
            output = self._attend(attention_plan, query, key, value, attention)
        output = output.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return output
        text_length = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](output[:, text_length:].contiguous()))
        return image, attn.to_add_out(output[:, :text_length].contiguous())

    def _attend(
        self,
        plan: AttentionPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: partial[torch.Tensor],
    ) -> torch.Tensor:
        opaque = torch.compiler.is_compiling() and not torch.is_grad_enabled() and self._parallel_config is None
        table = plan.image_table if self.image_only else plan.table
        if opaque and table is not None:
            chosen = self._attention_backend
            backend = "" if chosen is None else str(getattr(chosen, "value", chosen))
            return attend_classes(query, key, value, table, backend)
        return plan.attend(query, key, value, attention, self.image_only)

    @staticmethod
    def _joint_heads(
        attn: FluxAttention, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        projections = get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = (tensor.unflatten(-1, (-1, attn.head_dim)) for tensor in projections[:3])
        query, key = attn.norm_q(query), attn.norm_k(key)
        if attn.added_kv_proj_dim is None:
            return query, key, value
        text_query, text_key, text_value = (tensor.unflatten(-1, (-1, attn.head_dim)) for tensor in projections[3:])
        text_query, text_key = attn.norm_added_q(text_query), attn.norm_added_k(text_key)
        return (
            torch.cat([text_query, query], dim=1),
            torch.cat([text_key, key], dim=1),
            torch.cat([text_value, value], dim=1),
        )


def _rotate(tensor: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor], start: int) -> torch.Tensor:
    if start == 0:
        return apply_rotary_emb(tensor, rotary_emb, sequence_dim=1)
    cos, sin = rotary_emb
    rotated = apply_rotary_emb(tensor[:, start:], (cos[start:], sin[start:]), sequence_dim=1)
    return torch.cat([tensor[:, :start], rotated], dim=1)


def set_regional_processors(transformer: torch.nn.Module) -> list[FluxAttention]:
    """Give every attention layer that has diffusers' stock processor a [`FluxRegionalAttnProcessor`].

    Args:
        transformer (`torch.nn.Module`): A `FluxTransformer2DModel`.

    Returns:
        `list[FluxAttention]`: the layers that were given one; it remembers the processor it `stands_in_for`.
    """
    layers = [module for module in transformer.modules() if isinstance(module, FluxAttention)]
    replaced = [layer for layer in layers if type(layer.processor) is FluxAttnProcessor]
    for layer in replaced:
        stock = layer.processor
        # Nothing reads the text tokens after the last single block, which is the last layer of the model.
        processor = FluxRegionalAttnProcessor(image_only=layer is layers[-1] and layer.added_kv_proj_dim is None)
        processor._attention_backend = stock._attention_backend
        processor._parallel_config = stock._parallel_config
        processor.stands_in_for = stock
        layer.processor = processor
    return replaced


def runs_attention_plans(transformer: torch.nn.Module) -> bool:
    """Whether every attention layer of `transformer` has a [`FluxRegionalAttnProcessor`]."""
    processors = [module.processor for module in transformer.modules() if isinstance(module, FluxAttention)]
    return bool(processors) and all(isinstance(processor, FluxRegionalAttnProcessor) for processor in processors)


@contextmanager
def regional_attention(transformer: torch.nn.Module) -> Iterator[None]:
    """Let the stock attention layers of `transformer` execute attention plans inside this context.

    Layers that have another processor than diffusers' stock one (an IP-Adapter's, say) are left alone; attention
    rules are then executed through a dense mask. On leaving, the former processors are back; contexts over the same
    transformer may overlap, and the last one to end puts them back.

    Args:
        transformer (`torch.nn.Module`): A `FluxTransformer2DModel`, compiled, offloaded, quantised or not.
    """
    fresh = set_regional_processors(transformer)
    shared = [
        module
        for module in transformer.modules()
        if isinstance(module, FluxAttention) and getattr(module.processor, "users", 0) > 0
    ]
    used = [(layer, layer.processor) for layer in (*fresh, *shared)]
    for _, processor in used:
        processor.users += 1
    try:
        yield
    finally:
        for layer, processor in used:
            processor.users -= 1
            if processor.users == 0 and layer.processor is processor:
                layer.processor = processor.stands_in_for
