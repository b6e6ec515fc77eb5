"""Randomness without a state: every draw is a function of the seed, its purpose and some numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch


class Draws:
    """Random numbers that depend on the seed, on what they are for, and on numbers such as step and sample alone.

    No draw depends on an earlier one, so a run that is resumed, split over processes or loaded by any number of
    workers draws what an unbroken run in one process draws.

    Args:
        seed (`int`): The seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _number(self, purpose: str, numbers: Sequence[int]) -> int:
        text = "/".join([str(self.seed), purpose, *map(str, numbers)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    def generator(self, purpose: str, *numbers: int) -> torch.Generator:
        """Return a new generator on the CPU.

        Args:
            purpose (`str`): What is drawn, for example `"noise"`.
            numbers (`int`): What the draw depends on, for example the step and the sample's index.

        Returns:
            `torch.Generator`
        """
        return torch.Generator().manual_seed(self._number(purpose, numbers))

    def rng(self, purpose: str, *numbers: int) -> random.Random:
        """Return Python's generator for the same purpose and numbers."""
        return random.Random(self._number(purpose, numbers))

    def uniform(self, purpose: str, *numbers: int, shape: Sequence[int] = ()) -> torch.Tensor:
        """Draw uniform numbers.

        Args:
            purpose (`str`): What they are for.
            numbers (`int`): What they depend on.
            shape (`Sequence[int]`, defaults to `()`): Shape of the result.

        Returns:
            `torch.Tensor` of this shape: in [0, 1), float64.
        """
        generator = self.generator(purpose, *numbers)
        return torch.rand(tuple(shape), generator=generator, dtype=torch.float64)

    def normal(self, purpose: str, *numbers: int, shape: Sequence[int]) -> torch.Tensor:
        """Draw standard normal numbers.

        Args:
            purpose (`str`): What they are for.
            numbers (`int`): What they depend on.
            shape (`Sequence[int]`): Shape of the result.

        Returns:
            `torch.Tensor` of this shape, float32.
        """
        return torch.randn(tuple(shape), generator=self.generator(purpose, *numbers))

    def permutation(self, purpose: str, *numbers: int, length: int) -> list[int]:
        """Draw a permutation of `range(length)`.

        Args:
            purpose (`str`): What it is for.
            numbers (`int`): What it depends on.
            length (`int`): How many numbers.

        Returns:
            `list[int]`
        """
        return torch.randperm(length, generator=self.generator(purpose, *numbers)).tolist()
