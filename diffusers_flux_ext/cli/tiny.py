"""The embedded tiny model on the command line."""

from __future__ import annotations

from typing import Any

from .. import tiny_flux_path


TINY = "tiny"
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
    return tiny_flux_path() if name == TINY else name
