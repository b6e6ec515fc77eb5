"""Checks for what cannot run while the tokens of a transformer are split over several devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._compat import split_degree, splits_evenly
from ..sequence import Contribution, JointLayout
from .image_prompts import IMAGE_PROMPTS


def check_not_split(transformer: torch.nn.Module, what: str) -> None:
    """Raise a `ValueError` if context parallelism is enabled on a transformer.

    Args:
        transformer (`torch.nn.Module`): The transformer.
        what (`str`): What cannot run then, for the message.
    """
    degree = split_degree(transformer)
    if degree > 1:
        raise ValueError(
            f"The transformer splits its tokens over {degree} devices (context parallelism), where {what} cannot run, "
            f"since every device would apply the whole to its part. Load the transformer without "
            f"`enable_parallelism`, or leave them out."
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
    degree = split_degree(transformer)
    if degree == 1:
        return
    kwargs = [part.attention_kwargs for part in contributions]
    found = {
        "attention rules (of entities, of references with a strength or mask, of masked Redux)": any(
            part.rules for part in contributions
        ),
        "hidden padding (`mask_padding`)": hides_padding,
        "an `attention_mask`": any("attention_mask" in given for given in kwargs),
        "residuals (of ControlNets, of InfiniteYou)": any(
            part.block_residuals or part.single_block_residuals for part in contributions
        ),
        "masked image prompts": any(
            prompt.mask is not None for given in kwargs for prompt in given.get(IMAGE_PROMPTS, ())
        ),
    }
    present = [name for name, is_present in found.items() if is_present]
    if present:
        check_not_split(transformer, " and ".join(present))
    num_text = layout.num_text_tokens
    sizes = {"text": num_text, "image": layout.total - num_text}
    uneven = [f"{size} {kind} tokens" for kind, size in sizes.items() if size % degree]
    if uneven and splits_evenly(transformer):
        raise ValueError(
            f"The transformer splits its tokens over {degree} devices (context parallelism), but "
            f"{' and '.join(uneven)} cannot be divided by {degree}. Change the size, `max_sequence_length` or the "
            f"conditions that add tokens, or give `ContextParallelConfig` the argument `ulysses_anything=True`."
        )
