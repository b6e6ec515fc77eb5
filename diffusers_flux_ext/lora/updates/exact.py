"""Lossless arithmetic of factors: slicing, stacking and permuting keep every number.

Where a number has to be multiplied, the result keeps its dtype if it is exact there, and is widened to float32 if not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ..errors import LoRAError


class BlockMatrix:
    """A matrix of zeros with blocks in it, built when it is needed: the `up` of joined layers is mostly zeros.

    Args:
        blocks (`Sequence[tuple[int, int, torch.Tensor]]`): First row, first column and values of each block.
        shape (`tuple[int, int]`): Rows and columns.
    """

    ndim = 2

    def __init__(self, blocks: Sequence[tuple[int, int, Tensor]], shape: tuple[int, int]) -> None:
        self.blocks = blocks
        self.shape = torch.Size(shape)
        self.dtype = reduce(promote, [block.dtype for _, _, block in blocks])

    def build(self) -> Tensor:
        """Return the matrix as a tensor."""
        matrix = torch.zeros(self.shape, dtype=self.dtype, device=self.blocks[0][2].device)
        for row, column, block in self.blocks:
            matrix[row : row + block.shape[0], column : column + block.shape[1]] = block.to(self.dtype)
        return matrix


def lossless(tensor: Tensor, like: torch.dtype) -> Tensor:
    """`tensor` in the dtype `like` if that changes no value, else as it is."""
    narrow = tensor.to(like)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def multiplied(tensor: Tensor, factor: float) -> Tensor:
    """`tensor * factor`, in the dtype of `tensor` where that is exact and in float32 or wider elsewhere."""
    if factor == 1:
        return tensor
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32) if tensor.dtype.itemsize > 1 else torch.float32)
    product = wide * factor
    if not product.isfinite().all() and wide.isfinite().all():
        raise LoRAError(f"Values of a layer become infinite when they are multiplied with its scale, {factor:g}.")
    return lossless(product, tensor.dtype)


def swap_halves(tensor: Tensor) -> Tensor:
    """Return the rows with their two halves exchanged."""
    return torch.cat(tensor.chunk(2)[::-1])


def with_identity(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`matrix` as the product of itself and the smaller identity, in the order that fits."""
    rows, columns = matrix.shape
    identity = torch.eye(min(rows, columns), dtype=matrix.dtype, device=matrix.device)
    return (matrix, identity) if columns <= rows else (identity, matrix)


def alpha_tensor(value: float, like: Tensor | None = None) -> Tensor:
    """Alpha as a tensor, in the shape and dtype of `like` if it is exact there, else in float32."""
    if like is None:
        return torch.tensor(value, dtype=torch.float32)
    exact = torch.full(tuple(like.shape), value, dtype=torch.float64)
    stored = exact.to(like.dtype)
    return stored if torch.equal(stored.double(), exact) else exact.to(torch.float32)


def promote(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """Return the dtype that holds both exactly; float32 for two different 8-bit ones."""
    if a == b:
        return a
    small = [dtype for dtype in (a, b) if dtype.itemsize > 1]
    return reduce(torch.promote_types, small) if small else torch.float32


def equal_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of any dtypes have the same shape and values."""
    dtype = promote(first.dtype, second.dtype)
    return first.shape == second.shape and torch.equal(first.to(dtype), second.to(dtype))


def add_exactly(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum in the dtype that holds both, or in float32 if that has 8 bits, which cannot add."""
    dtype = promote(first.dtype, second.dtype)
    dtype = dtype if dtype.itemsize > 1 else torch.float32
    return first.to(dtype) + second.to(dtype)


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Return the rows of all tensors, in a dtype that holds them exactly."""
    if len(tensors) == 1:
        return tensors[0]
    dtype = reduce(promote, [tensor.dtype for tensor in tensors])
    rows = sum(tensor.shape[0] for tensor in tensors)
    joined = torch.empty(rows, *tensors[0].shape[1:], dtype=dtype, device=tensors[0].device)
    start = 0
    for tensor in tensors:
        joined[start : start + tensor.shape[0]] = tensor.to(dtype)
        start += tensor.shape[0]
    return joined
