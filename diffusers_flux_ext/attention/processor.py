"""The attention processor that executes an attention plan."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

from .._compat import get_qkv_projections
from .compiled import attend_classes


if TYPE_CHECKING:
    from ..parallel.tokens import SplitTokens
    from .image_prompts import PlacedPrompt, PlacedPrompts
    from .plan import AttentionPlan


# Two threads that set up the same transformer would replace and remove each other's processors.
_INSTALLING = threading.Lock()


class FluxRegionalAttnProcessor:
    """Attention of FLUX.1 that executes an [`AttentionPlan`] and adds [`ImagePrompt`]s.

    With neither it computes exactly what `FluxAttnProcessor` computes. It has no weights, works for double and
    single blocks, with fused projections and with every attention backend of diffusers.

    Args:
        image_only (`bool`, defaults to `False`):
            Whether the text tokens' attention is not needed, as in the last single block. Plans then skip it.
        block (`int`, *optional*):
            Number of the block among those of its kind, which image prompts need. [`regional_attention`] sets it.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, image_only: bool = False, block: int | None = None) -> None:
        self.image_only = image_only
        self.block = block
        self._block_index = None if block is None else torch.tensor([block], device="cpu")
        self.stands_in_for: FluxAttnProcessor | FluxRegionalAttnProcessor | None = None
        self.users = 0

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_plan: AttentionPlan | None = None,
        image_prompts: PlacedPrompts | None = None,
        split_tokens: SplitTokens | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
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
            image_prompts (`PlacedPrompts`, *optional*): Extra keys and values of the tokens.
            split_tokens (`SplitTokens`, *optional*): How the tokens of the plan are split over devices.

        Returns:
            `torch.Tensor`, or for a double block a `tuple` of image tokens, text tokens and, where a prompt asks for
            it, what is added to the image tokens after the block.
        """
        query, key, value = self._joint_heads(attn, hidden_states, encoder_hidden_states)
        # The double blocks' adapters were trained on queries without rotary positions.
        unrotated = query if image_prompts is not None else None
        if image_rotary_emb is not None:
            start = 0 if attention_plan is None else attention_plan.num_unrotated
            query, key = _rotate(query, image_rotary_emb, start), _rotate(key, image_rotary_emb, start)
        attention = partial(
            dispatch_attention_fn, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        if attention_plan is None:
            output = attention(query, key, value, attn_mask=attention_mask)
        elif split_tokens is not None:
            every = split_tokens.all_tokens(query, key, value)
            output = attention_plan.attend(every[0], every[1], every[2], self._attention, self.image_only)
            output = split_tokens.own_tokens(output, query.shape[2])
        else:
            output = self._attend(attention_plan, query, key, value, attention)
        if encoder_hidden_states is None:
            if image_prompts is not None:
                output = self._add_to_joint(output, query, image_prompts.single)
            return output.flatten(2, 3).to(query.dtype)
        output = output.to(query.dtype)
        text, image = output.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        after = None
        if image_prompts is not None and unrotated is not None:
            unrotated = unrotated[:, -image.shape[1] :]
            after = self._sum(unrotated, [part for part in image_prompts.double if part.after_block])
            within = [part for part in image_prompts.double if not part.after_block]
            image = _plus(image, self._sum(unrotated, within))
        image = attn.to_out[1](attn.to_out[0](image.flatten(2, 3).contiguous()))
        text = attn.to_add_out(text.flatten(2, 3).contiguous())
        return (image, text) if after is None else (image, text, after.flatten(2, 3).to(query.dtype))

    def _add_to_joint(
        self, output: torch.Tensor, query: torch.Tensor, prompts: Sequence[PlacedPrompt]
    ) -> torch.Tensor:
        masked = [part for part in prompts if part.mask is not None]
        output = _plus(output, self._sum(query, [part for part in prompts if part.mask is None]))
        if masked:
            # The mask does not cover text, which would carry the prompt to the whole image.
            num_image = masked[0].mask.shape[1]  # type: ignore[union-attr]
            text, image = output[:, :-num_image], output[:, -num_image:]
            output = torch.cat([text, _plus(image, self._sum(query[:, -num_image:], masked))], dim=1)
        return output

    def _sum(self, query: torch.Tensor, prompts: Sequence[PlacedPrompt]) -> torch.Tensor | None:
        """Sum what the tokens of `query` read from all prompts; `None` if that is nothing."""
        total = None
        for prompt in prompts:
            part = prompt.attend(self._known_block(), query, self._attention)
            total = part if total is None else _plus(total, part)
        return total

    def _known_block(self) -> int | torch.Tensor:
        # A number would be a constant of a compiled block, so every block would be compiled again.
        block = self._block_index if torch.compiler.is_compiling() else self.block
        if block is None:
            raise ValueError(
                "Image prompts need to know the block, but this `FluxRegionalAttnProcessor` was made without `block`. "
                "Call the transformer inside `regional_attention(transformer)`."
            )
        return block

    def _attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # Every device holds all keys here, of a prompt or of its own heads, so nothing is exchanged between devices.
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend)

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


# diffusers asks for the signature in every layer of every step; making it takes longer than looking it up.
FluxRegionalAttnProcessor.__call__.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    FluxRegionalAttnProcessor.__call__
)


def _rotate(tensor: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor], start: int) -> torch.Tensor:
    if start == 0:
        return apply_rotary_emb(tensor, rotary_emb, sequence_dim=1)
    cos, sin = rotary_emb
    rotated = apply_rotary_emb(tensor[:, start:], (cos[start:], sin[start:]), sequence_dim=1)
    return torch.cat([tensor[:, :start], rotated], dim=1)


def _plus(tensor: torch.Tensor, part: torch.Tensor | None) -> torch.Tensor:
    return tensor if part is None else tensor + part


def _has_replaceable_processor(layer: FluxAttention) -> bool:
    processor = layer.processor
    return type(processor) is FluxAttnProcessor or (
        type(processor) is FluxRegionalAttnProcessor and processor.block is None
    )


def set_regional_processors(transformer: torch.nn.Module) -> list[FluxAttention]:
    """Give every attention layer that has diffusers' stock processor a [`FluxRegionalAttnProcessor`].

    Layers with a [`FluxRegionalAttnProcessor`] that does not know its block get a new one, too.

    Args:
        transformer (`torch.nn.Module`): A `FluxTransformer2DModel`.

    Returns:
        `list[FluxAttention]`: the layers that were given one; each new processor remembers the one it `stands_in_for`.
    """
    layers = [module for module in transformer.modules() if isinstance(module, FluxAttention)]
    # Caches that swap the lists of blocks for a forward pass change their order among the modules.
    layers.sort(key=lambda layer: layer.added_kv_proj_dim is None)
    replaced = [layer for layer in layers if _has_replaceable_processor(layer)]
    num_double = sum(layer.added_kv_proj_dim is not None for layer in layers)
    for layer in replaced:
        stock, index = layer.processor, layers.index(layer)
        is_single = layer.added_kv_proj_dim is None
        # Nothing reads the text tokens after the last single block, which is the last layer of the model.
        processor = FluxRegionalAttnProcessor(
            image_only=layer is layers[-1] and is_single, block=index - num_double if is_single else index
        )
        processor._attention_backend = stock._attention_backend
        processor._parallel_config = stock._parallel_config
        processor.stands_in_for = stock
        layer.processor = processor
    return replaced


def attention_processors(transformer: torch.nn.Module) -> list[Any]:
    """Return the processor of each attention layer, found in one walk through the modules."""
    return [module.processor for module in transformer.modules() if isinstance(module, FluxAttention)]


def all_run_plans(processors: Sequence[Any]) -> bool:
    """Whether there are processors, each of them a [`FluxRegionalAttnProcessor`]."""
    return bool(processors) and all(isinstance(processor, FluxRegionalAttnProcessor) for processor in processors)


def runs_attention_plans(transformer: torch.nn.Module) -> bool:
    """Whether every attention layer of `transformer` has a [`FluxRegionalAttnProcessor`]."""
    return all_run_plans(attention_processors(transformer))


def check_image_prompts_run(transformer: torch.nn.Module) -> None:
    """Raise a `ValueError` unless every attention layer of `transformer` can add image prompts."""
    if not runs_attention_plans(transformer):
        processors = getattr(transformer, "attn_processors", {}).values()
        names = sorted({type(processor).__name__ for processor in processors} - {"FluxRegionalAttnProcessor"})
        raise ValueError(
            f"Image prompts need `FluxRegionalAttnProcessor` on every block, but this transformer has {names}. Call "
            f"it inside `regional_attention(transformer)`; if diffusers' own IP-Adapter is loaded, unload it with "
            f"`unload_ip_adapter()` and give its weights as a `FluxIPAdapter`."
        )


@contextmanager
def regional_attention(transformer: torch.nn.Module) -> Iterator[None]:
    """Let the stock attention layers of `transformer` execute attention plans inside this context.

    Layers that have another processor than diffusers' stock one (an IP-Adapter's, say) are left alone; attention
    rules are then executed through a dense mask. On leaving, the former processors are back; contexts over the same
    transformer may overlap, and the last one to end puts them back.

    Args:
        transformer (`torch.nn.Module`): A `FluxTransformer2DModel`, compiled, offloaded, quantised or not.
    """
    with _INSTALLING:
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
        with _INSTALLING:
            for layer, processor in used:
                processor.users -= 1
                if processor.users == 0 and layer.processor is processor:
                    layer.processor = processor.stands_in_for
