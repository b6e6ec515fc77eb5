"""Stored factors of one layer, and the dense change they mean, computed in float64 from the stored values."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.support.lora_files.layouts import Unit


@dataclass(frozen=True)
class Recipe:
    """What the factors of one layer are to be."""

    rank: int
    dtype: torch.dtype
    generator: torch.Generator
    down: str = "lora_A.weight"
    up: str = "lora_B.weight"
    bias: str = ""
    magnitude: str = ""
    magnitude_axis: str = "out"
    blocks: bool = False
    shared_down: Tensor | None = None
    factor: int = -1
    decomposed: tuple[bool, bool] = (False, True)

    def noise(self, *shape: int) -> Tensor:
        """A random tensor as the file stores it."""
        return (torch.randn(shape, generator=self.generator) / 4).to(self.dtype)


@dataclass
class Factors:
    """Stored tensors by suffix, the unscaled dense change of all rows, and what else the layer's keys mean."""

    tensors: dict[str, Tensor]
    dense: Tensor
    rank: int
    scaled: bool = True
    bias: Tensor | None = None
    bias_scaled: bool = False
    magnitude: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


def exact(tensor: Tensor) -> Tensor:
    """The stored values in float64."""
    return tensor.to(torch.float32).double() if tensor.dtype != torch.float64 else tensor


def lora(unit: Unit, recipe: Recipe) -> Factors:
    """`lora_A`, `lora_B`, and a bias or a magnitude where the recipe names one."""
    if recipe.blocks and len(unit.modules) > 1:
        return block_diagonal(unit, recipe)
    down = recipe.shared_down if recipe.shared_down is not None else recipe.noise(recipe.rank, unit.columns)
    up = recipe.noise(unit.rows, recipe.rank)
    factors = Factors({recipe.down: down, recipe.up: up}, exact(up) @ exact(down), recipe.rank)
    if recipe.bias:
        bias = factors.tensors[recipe.bias] = recipe.noise(unit.rows)
        factors.bias, factors.bias_scaled = exact(bias), recipe.bias != "diff_b"
    if recipe.magnitude:
        shape = {"out": (unit.rows,), "column": (unit.rows, 1), "in": (1, unit.columns)}[recipe.magnitude_axis]
        magnitude = (recipe.noise(*shape).float().abs() + 1).to(recipe.dtype)
        factors.tensors[recipe.magnitude] = magnitude
        factors.magnitude = exact(magnitude) if recipe.magnitude_axis == "in" else exact(magnitude).reshape(-1)
    return factors


def block_diagonal(unit: Unit, recipe: Recipe) -> Factors:
    """A fused layer whose parts have columns of their own, as converters from split files write it."""
    total = recipe.rank * len(unit.modules)
    down, up = recipe.noise(total, unit.columns), torch.zeros(unit.rows, total, dtype=recipe.dtype)
    for index, (_, rows) in enumerate(unit.cuts()):
        up[rows, index * recipe.rank : (index + 1) * recipe.rank] = recipe.noise(rows.stop - rows.start, recipe.rank)
    return Factors({recipe.down: down, recipe.up: up}, exact(up) @ exact(down), total)


def loha(unit: Unit, recipe: Recipe) -> Factors:
    """The elementwise product of two low-rank matrices."""
    tensors = {
        "hada_w1_a": recipe.noise(unit.rows, recipe.rank),
        "hada_w1_b": recipe.noise(recipe.rank, unit.columns),
        "hada_w2_a": recipe.noise(unit.rows, recipe.rank),
        "hada_w2_b": recipe.noise(recipe.rank, unit.columns),
    }
    first, second = (exact(tensors[f"hada_w{i}_a"]) @ exact(tensors[f"hada_w{i}_b"]) for i in (1, 2))
    return Factors(tensors, first * second, recipe.rank)


def divisors(number: int, factor: int) -> tuple[int, int]:
    """LyCORIS' two factors of a width, the smaller one first: near the root, or as near to `factor` as it divides."""
    if factor > 0 and number % factor == 0:
        return min(factor, number // factor), max(factor, number // factor)
    limit = math.isqrt(number) if factor < 0 else min(factor, math.isqrt(number))
    small = max(candidate for candidate in range(1, limit + 1) if number % candidate == 0)
    return small, number // small


def lokr(unit: Unit, recipe: Recipe) -> Factors:
    """A Kronecker product, either factor full or of low rank."""
    rows, columns = divisors(unit.rows, recipe.factor), divisors(unit.columns, recipe.factor)
    tensors: dict[str, Tensor] = {}
    dense = []
    for index, (height, width, low_rank) in enumerate(zip(rows, columns, recipe.decomposed), start=1):
        if low_rank:
            left = tensors[f"lokr_w{index}_a"] = recipe.noise(height, recipe.rank)
            right = tensors[f"lokr_w{index}_b"] = recipe.noise(recipe.rank, width)
            dense.append(exact(left) @ exact(right))
        else:
            tensors[f"lokr_w{index}"] = recipe.noise(height, width)
            dense.append(exact(tensors[f"lokr_w{index}"]))
    return Factors(tensors, torch.kron(dense[0], dense[1]), recipe.rank, scaled=any(recipe.decomposed))


def full(unit: Unit, recipe: Recipe) -> Factors:
    """The change itself, of the weight and of the bias."""
    weight, bias = recipe.noise(unit.rows, unit.columns), recipe.noise(unit.rows)
    tensors = {"diff": weight, "diff_b": bias}
    return Factors(tensors, exact(weight), 1, scaled=False, bias=exact(bias))


KINDS: dict[str, Callable[[Unit, Recipe], Factors]] = {"lora": lora, "loha": loha, "lokr": lokr, "full": full}
