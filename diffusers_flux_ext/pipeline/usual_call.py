"""What a model draws with unless a call says otherwise, read from its configs; needs neither torch nor diffusers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..tiny import TINY, TINY_CALL


SCHNELL_TEXT_TOKENS = 256
SCHNELL_CALL: dict[str, Any] = {"num_inference_steps": 4, "max_sequence_length": SCHNELL_TEXT_TOKENS}


def call_of(model: str) -> dict[str, Any]:
    """Return arguments of the call that suit a model.

    Args:
        model (`str`): `"tiny"`, a folder, a repository or a single file.
    """
    if model == TINY:
        return dict(TINY_CALL)
    return dict(SCHNELL_CALL) if is_distilled_in_steps(model) else {}


def is_distilled_in_steps(model: str) -> bool:
    """Whether a model looks like FLUX.1 schnell: no guidance embedder, and a time grid without shift.

    Args:
        model (`str`): A folder in diffusers' layout, or a repository.
    """
    scheduler, transformer = (_config(model, *path) for path in _CONFIGS)
    shifted = scheduler.get("use_dynamic_shifting") or scheduler.get("shift", 1.0) != 1.0
    return bool(scheduler and transformer) and not shifted and not transformer.get("guidance_embeds")


def has_guidance(model: str) -> bool:
    """Whether a model takes a distilled guidance scale; `True` where that is not known.

    Args:
        model (`str`): A folder in diffusers' layout, or a repository.
    """
    return bool(_config(model, *_CONFIGS[1]).get("guidance_embeds", True))


_CONFIGS = (("scheduler", "scheduler_config.json"), ("transformer", "config.json"))


def _config(model: str, folder: str, name: str) -> dict[str, Any]:
    """Read a config of a model; what is not there or broken is told when the model is loaded."""
    path: str | None = os.path.join(model, folder, name)
    if not os.path.isdir(model):
        if os.path.exists(model):
            return {}
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(model, name, subfolder=folder)
        except (OSError, ValueError):
            return {}
    try:
        content = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
