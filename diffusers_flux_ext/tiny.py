"""The embedded tiny model and what is shipped beside it, by name; needs neither torch nor diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


TINY = "tiny"
"""The name that stands for the embedded model, and for modules and LoRAs that are shipped with it."""

ASSETS = Path(__file__).resolve().parent / "assets"
TINY_LORA = "tiny_flux_eligen_lora.safetensors"
# The tiny model was trained on short texts and without guidance distillation.
TINY_CALL: dict[str, Any] = {
    "height": 128,
    "width": 128,
    "num_inference_steps": 20,
    "max_sequence_length": 32,
    "true_cfg_scale": 2.0,
    "negative_prompt": "",
}


def named_model(name: str) -> str:
    """Return the folder of the embedded model for `tiny`, and any other name unchanged."""
    return str(ASSETS / "tiny_flux") if name == TINY else name


def named_lora(path: str, weight_name: str | None = None) -> str:
    """Return the file of a LoRA of the embedded model for `tiny`, and any other path unchanged.

    Args:
        path (`str`): A path.
        weight_name (`str`, *optional*): Which of the shipped ones; EliGen's by default.

    Returns:
        `str`
    """
    return str(ASSETS / (weight_name or TINY_LORA)) if path == TINY else path


def shipped_folders() -> list[Path]:
    """Return the folders of modules that are shipped for the tiny model."""
    return sorted(folder for folder in ASSETS.iterdir() if (folder / "config.json").is_file())


def shipped_loras() -> list[str]:
    """Return the names of the LoRAs that are shipped for the tiny model."""
    return sorted(path.name for path in ASSETS.glob("*_lora.safetensors"))
