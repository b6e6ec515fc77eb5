"""The released language model of Nexus-Gen V2, by its size."""

from typing import Any

from ...models.released import qwen_vl
from .language_model import NexusGenModel


def language_model() -> Any:
    """Return Nexus-Gen's language model, on the default device."""
    return qwen_vl(NexusGenModel)
