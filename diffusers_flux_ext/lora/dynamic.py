"""Updates of a layer that depend on more than their own tensors: on the timestep, or on the base weights."""

from __future__ import annotations

from .errors import UnsupportedLoRAError
from .updates import LayerUpdate


_DYNAMIC_PARTS = (
    ("lora_time_", "a timestep LoRA, whose update depends on the timestep. Load the file with `load_timestep_lora`"),
    ("oft_", "OFT, which multiplies the base weights"),
    ("rescale", "OFT, which multiplies the base weights"),
    ("on_input", "IA3, which multiplies the base weights"),
    *((f"{factor}.", "GLoRA, whose update depends on the base weights") for factor in ("a1", "a2", "b1", "b2", "bm")),
)


def dynamic_kind(update: LayerUpdate) -> str | None:
    """What an update is that depends on more than its own tensors, `None` for an ordinary one."""
    return next((text for mark, text in _DYNAMIC_PARTS for part in update.parts if part.startswith(mark)), None)


def is_timed(update: LayerUpdate) -> bool:
    """Whether an update depends on the timestep."""
    return any(part.startswith("lora_time_") for part in update.parts)


def refuse_dynamic(name: str, update: LayerUpdate) -> None:
    """Raises an [`UnsupportedLoRAError`] if an update depends on more than its own tensors."""
    kind = dynamic_kind(update)
    if kind is not None:
        raise UnsupportedLoRAError(f"`{name}` is {kind}.")
