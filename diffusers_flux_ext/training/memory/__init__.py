"""What training takes of a GPU's memory, computed without weights, and settings that fit a budget."""

from .activations import Activations, count_activations, saved_bytes
from .needs import Needs, Setting, predict
from .plan import MemoryPlan, choose_setting, read_budget


__all__ = [
    "Activations",
    "MemoryPlan",
    "Needs",
    "Setting",
    "choose_setting",
    "count_activations",
    "predict",
    "read_budget",
    "saved_bytes",
]
