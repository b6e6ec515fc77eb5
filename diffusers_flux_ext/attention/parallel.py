"""What the conditions of a call need while the tokens of a transformer are split over several devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .._compat.parallel import SplitSettings, split_degree, split_settings
from ..parallel.tokens import SplitTokens
from ..sequence import Contribution, JointLayout
from .image_prompts import IMAGE_PROMPTS, PlacedPrompt, PlacedPrompts
from .plan import AttentionPlan


SPLIT_TOKENS = "split_tokens"
"""Name of the attention argument that carries [`SplitTokens`] to the processors, beside a plan."""


def check_not_split(transformer: torch.nn.Module, what: str) -> None:
    """Raise a `ValueError` if another library splits the tokens of a transformer.

    Args:
        transformer (`torch.nn.Module`): The transformer.
        what (`str`): What cannot run then, for the message.
    """
    degree = split_degree(transformer)
    if degree > 1 and split_settings(transformer) is None:
        raise ValueError(
            f"Another library splits the transformer's tokens over {degree} devices, where {what} cannot run, since "
            f"every device would apply the whole to its part. Use `pipe.enable_parallelism(ulysses_degree={degree})`, "
            f"or leave them out."
        )


def check_runs_split(
    transformer: torch.nn.Module, contributions: Sequence[Contribution], layout: JointLayout, hides_padding: bool
) -> None:
    """Raise a `ValueError` if context parallelism is enabled and cannot run what the conditions contribute.

    Args:
        transformer (`torch.nn.Module`): The transformer.
        contributions (`Sequence[Contribution]`): What is added to one call of the transformer.
        layout (`JointLayout`): Its tokens.
        hides_padding (`bool`): Whether the padding of the prompt is hidden.
    """
    degree, settings = split_degree(transformer), split_settings(transformer)
    if degree == 1:
        return
    kwargs = [part.attention_kwargs for part in contributions]
    restricted = {
        "attention rules (of entities, of references with a strength or mask, of masked Redux)": any(
            part.rules for part in contributions
        ),
        "hidden padding (`mask_padding`)": hides_padding,
        "an `attention_mask`": any("attention_mask" in given for given in kwargs),
    }
    split = {
        "residuals (of ControlNets, of InfiniteYou)": any(
            part.block_residuals or part.single_block_residuals for part in contributions
        ),
        "masked image prompts": any(
            prompt.mask is not None for given in kwargs for prompt in given.get(IMAGE_PROMPTS, ())
        ),
    }
    present = [name for name, is_present in {**restricted, **split}.items() if is_present]
    if present:
        check_not_split(transformer, " and ".join(present))
    if settings is not None:
        _check_settings(transformer, settings, [name for name, is_present in restricted.items() if is_present])
    if settings is None or settings.evenly:
        _check_divisible(degree, layout)


def _check_settings(transformer: Any, settings: SplitSettings, restricted: Sequence[str]) -> None:
    if settings.ring > 1 and restricted:
        raise ValueError(
            f"Ring attention over {settings.ring} devices cannot run {' and '.join(restricted)}: no device ever holds "
            f"all tokens. Use `ulysses_degree` instead of `ring_degree`."
        )
    if settings.ring > 1 and not settings.backend_runs_ring:
        raise ValueError(
            f"Ring attention over {settings.ring} devices needs an attention backend that returns the sums of its "
            f"weights, and {settings.backend!r} does not. Set another one, for example "
            f"`transformer.set_attention_backend('_native_cudnn')`, or use `ulysses_degree`."
        )
    heads = transformer.config.num_attention_heads
    if settings.evenly and heads % settings.ulysses:
        raise ValueError(
            f"The transformer has {heads} attention heads, which {settings.ulysses} devices cannot share evenly. Use "
            f"a `ulysses_degree` that divides {heads}, or `ulysses_anything=True`."
        )


def _check_divisible(degree: int, layout: JointLayout) -> None:
    num_text = layout.num_text_tokens
    sizes = {"text": num_text, "image": layout.total - num_text}
    uneven = [f"{size} {kind} tokens" for kind, size in sizes.items() if size % degree]
    if uneven:
        raise ValueError(
            f"The transformer splits its tokens over {degree} devices (context parallelism), but "
            f"{' and '.join(uneven)} cannot be divided by {degree}. Change the size, `max_sequence_length` or the "
            f"conditions that add tokens, or give `ulysses_anything=True`."
        )


def split_tokens(transformer: torch.nn.Module, layout: JointLayout, device: torch.device) -> SplitTokens | None:
    """Return how the tokens of a call are split over devices, or `None` if they are not.

    Args:
        transformer (`torch.nn.Module`): The transformer.
        layout (`JointLayout`): The tokens of the call.
        device (`torch.device`): This device.

    Returns:
        `SplitTokens` or `None`
    """
    settings = split_settings(transformer)
    if settings is None:
        return None
    return SplitTokens(layout.num_text_tokens, layout.total - layout.num_text_tokens, settings.group, device)


def split_attention_kwargs(kwargs: dict[str, Any], split: SplitTokens | None) -> dict[str, Any]:
    """Return the attention arguments of this device; without a split, those given.

    Args:
        kwargs (`dict[str, Any]`): The attention arguments of the whole call, with placed image prompts.
        split (`SplitTokens`, *optional*): How its tokens are split.

    Returns:
        `dict[str, Any]`
    """
    if split is None:
        return kwargs
    own = dict(kwargs)
    if "attention_mask" in own:
        own["attention_mask"] = split.mask_in_device_order(own["attention_mask"])
    plan: AttentionPlan | None = own.get("attention_plan")
    if plan is not None:
        rotated = replace(plan, num_unrotated=split.num_local_text if plan.num_unrotated else 0)
        own |= {"attention_plan": rotated, SPLIT_TOKENS: split}
    if IMAGE_PROMPTS in own:
        prompts: PlacedPrompts = own[IMAGE_PROMPTS]
        own[IMAGE_PROMPTS] = PlacedPrompts(
            *(tuple(_part(each, split) for each in kind) for kind in (prompts.double, prompts.single))
        )
    return own


def _part(prompt: PlacedPrompt, split: SplitTokens) -> PlacedPrompt:
    return prompt if prompt.mask is None else replace(prompt, mask=split.local(prompt.mask, dim=1))
