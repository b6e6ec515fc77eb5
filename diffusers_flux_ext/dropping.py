"""Leaving a condition out of some samples of a batch, whose tensors keep their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .attention.image_prompts import IMAGE_PROMPTS, ImagePrompt
from .denoise import PromptEmbeds
from .sequence import AttentionRule, Contribution, TokenGroup


def drop_contribution(contribution: Contribution, keep: torch.Tensor, owner: str) -> Contribution:
    """Leave a contribution out of some samples.

    Its tokens stay in the sequence, but no other token sees them; residuals, channels and the values of image prompts
    become zero. The other samples and the shapes stay as they are, and so do the parameters that are used.

    Args:
        contribution (`Contribution`): What a condition adds.
        keep (`torch.Tensor` of shape `(batch_size,)`): Boolean. False leaves it out.
        owner (`str`): The condition's class, for errors.

    Returns:
        `Contribution`

    Raises:
        ValueError: if it has arguments of attention that cannot be left out of single samples.
    """
    if bool(keep.all()):
        return contribution
    own = [group.name for group in (*contribution.text, *contribution.reference)]
    rules = [rule if {rule.query, rule.key} & set(own) else _where(rule, keep) for rule in contribution.rules]
    rules += [AttentionRule("*", name, keep.cpu()[:, None, None]) for name in own]
    return replace(
        contribution,
        text=[_outside_of_prompt(group, keep) for group in contribution.text],
        rules=rules,
        channels=_masked(contribution.channels, keep),
        block_residuals=_masked(contribution.block_residuals, keep),
        single_block_residuals=_masked(contribution.single_block_residuals, keep),
        attention_kwargs=_image_prompts(contribution.attention_kwargs, keep, owner),
    )


def drop_prompt(replaced: PromptEmbeds, prompt: PromptEmbeds, keep: torch.Tensor, owner: str) -> PromptEmbeds:
    """Give some samples their own prompt back where a condition replaced it.

    Args:
        replaced (`PromptEmbeds`): The condition's prompt.
        prompt (`PromptEmbeds`): The prompt before.
        keep (`torch.Tensor` of shape `(batch_size,)`): Boolean. False gives a sample the prompt before.
        owner (`str`): The condition's class, for errors.

    Returns:
        `PromptEmbeds`

    Raises:
        ValueError: if the two differ in length, positions or hidden padding.
    """
    if bool(keep.all()):
        return replaced
    alike = replaced.hidden_states.shape[1] == prompt.hidden_states.shape[1] and torch.equal(
        replaced.ids.float(), prompt.ids.float()
    )
    if not alike or replaced.mask is not None or prompt.mask is not None:
        raise ValueError(
            f"{owner} replaces the prompt by another number of tokens ({replaced.hidden_states.shape[1]} instead of "
            f"{prompt.hidden_states.shape[1]}) or by other positions, so it cannot be left out of single samples. Set "
            f"its dropout to 0."
        )
    keep = keep.to(prompt.hidden_states.device)
    hidden_states = torch.where(keep[:, None, None], replaced.hidden_states, prompt.hidden_states)
    return replace(
        replaced, hidden_states=hidden_states, pooled=torch.where(keep[:, None], replaced.pooled, prompt.pooled)
    )


def _where(rule: AttentionRule, keep: torch.Tensor) -> AttentionRule:
    return replace(rule, allow=torch.as_tensor(rule.allow).cpu() | ~keep.cpu()[:, None, None])


def _outside_of_prompt(group: TokenGroup, keep: torch.Tensor) -> TokenGroup:
    if group.in_prompt is False:
        return group
    shown = torch.as_tensor(group.in_prompt).cpu()
    return replace(group, in_prompt=(shown if shown.ndim else shown[None, None]) & keep.cpu()[:, None])


def _masked(tensors: Sequence[torch.Tensor], keep: torch.Tensor) -> list[torch.Tensor]:
    # A condition may give one tensor several times, which is then masked once.
    masked = {id(tensor): tensor * keep.to(tensor)[:, None, None] for tensor in tensors}
    return [masked[id(tensor)] for tensor in tensors]


def _image_prompts(kwargs: Mapping[str, Any], keep: torch.Tensor, owner: str) -> dict[str, Any]:
    others = sorted(kwargs.keys() - {IMAGE_PROMPTS})
    if others:
        raise ValueError(
            f"{owner} gives the attention arguments {others}, which cannot be left out of single samples. Set its "
            f"dropout to 0."
        )
    prompts: Sequence[ImagePrompt] = kwargs.get(IMAGE_PROMPTS, ())
    kept = tuple(
        replace(each, values=each.values * keep.to(each.values)[None, :, None, None, None]) for each in prompts
    )
    return {IMAGE_PROMPTS: kept} if kept else {}
