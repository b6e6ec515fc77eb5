"""The reference's timestep LoRA on its pipeline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class _LocalFile:
    """What the reference asks of a file that it would download."""

    path: str

    def download_if_necessary(self) -> None:
        """It is there."""


def load_reference_timestep_lora(pipe: Any, path: Path, **options: float) -> None:
    """The reference's `load_timestep_lora`; it has no way back."""
    pipe.load_timestep_lora(_LocalFile(str(path)), **options)
