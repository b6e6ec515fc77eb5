"""What LoRA files do to layers: a class for each kind of update, and exact arithmetic on their factors."""

from .base import LoRA, Parts, Update
from .joining import join_rows
from .kinds import KINDS, PRODUCTS, TIMED_PARTS, DoRA, Dynamic, StoredLayer, Timed, update_of
from .lycoris import LoHa, LoKr
from .unscaled import Bias, Dense, Norm


__all__ = [
    "KINDS", "PRODUCTS", "TIMED_PARTS", "Bias", "Dense", "DoRA", "Dynamic", "LoHa", "LoKr", "LoRA", "Norm", "Parts",
    "StoredLayer", "Timed", "Update", "join_rows", "update_of",
]  # fmt: skip
