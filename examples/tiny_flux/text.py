"""Captions of scenes, and token ids of captions."""

import random

import torch
from transformers import CLIPTokenizer, T5Tokenizer

from diffusers_flux_ext import flux_shapes


def varied_caption(scene: flux_shapes.Scene, rng: random.Random) -> str:
    """Return a caption in varying words and spelling."""
    return flux_shapes.vary(flux_shapes.caption(scene, rng), rng)


def clip_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Return CLIP's token ids without the padding that all texts share.

    CLIP's attention looks back only and the pooled token is the first end of text, so the rest has no effect.

    Args:
        tokenizer (`CLIPTokenizer`): The tokenizer.
        texts (`list[str]`): The texts.

    Returns:
        `torch.Tensor` of shape `(len(texts), at most 77)`.
    """
    ids = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    longest = int((ids != tokenizer.eos_token_id).sum(dim=1).max()) + 1
    return ids[:, :longest]


def t5_ids(tokenizer: T5Tokenizer, texts: list[str], length: int) -> torch.Tensor:
    """Return T5's token ids, padded or cut to `length`.

    Args:
        tokenizer (`T5Tokenizer`): The tokenizer.
        texts (`list[str]`): The texts.
        length (`int`): Number of tokens.

    Returns:
        `torch.Tensor` of shape `(len(texts), length)`.
    """
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
