"""Compares what a reader made of a file with what the file means."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.support.lora_files.build import LoRAFile


TOLERANCE = 1e-5
VERDICTS = ("exact", "partial", "wrong", "no-op", "error")


@dataclass
class Reading:
    """What a reader applies: changes of weights and biases, overwritten norms and magnitudes, under the same names."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)


def agrees(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors have one shape and a relative distance within `tolerance`."""
    if got.shape != expected.shape:
        return False
    return bool(torch.linalg.vector_norm(got.double() - expected) <= tolerance * torch.linalg.vector_norm(expected))


def _nonzero(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if value.isnan().any() or value.abs().max() > 0}


def compare(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Numbers of right, wrong and missing tensors; zeros count as absent, and what nobody expects as wrong."""
    got, expected = _nonzero(got), _nonzero(expected)
    right = sum(name in got and agrees(got[name], value) for name, value in expected.items())
    missing = len(expected.keys() - got.keys())
    return right, len(got.keys() | expected.keys()) - right - missing, missing


def judge(file: LoRAFile, reading: Reading) -> str:
    """One of "exact", "partial", "wrong" and "no-op"; magnitudes are judged apart, by [`keeps_magnitudes`]."""
    pairs = (
        (reading.weights, file.expected),
        (reading.biases, file.expected_bias),
        (reading.norms, file.expected_norms),
    )
    right, wrong, missing = (sum(counts) for counts in zip(*(compare(got, expected) for got, expected in pairs)))
    if wrong:
        return "wrong"
    if not missing:
        return "exact"
    return "partial" if right else "no-op"


def keeps_magnitudes(file: LoRAFile, reading: Reading) -> bool:
    """Whether a reader applies every DoRA magnitude of a file."""
    return compare(reading.magnitudes, file.dora)[1:] == (0, 0)
