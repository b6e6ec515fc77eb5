"""Writing a converted model into a new folder."""

import os
from pathlib import Path

from diffusers import ModelMixin


def check_new_folder(target: Path) -> None:
    """Raise a `ValueError` if `target` exists; to be asked before long work starts."""
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or remove it first.")


def save_to_new_folder(model: ModelMixin, target: Path) -> None:
    """Write a model's folder for `from_pretrained`, under a temporary name until it is complete.

    Args:
        model (`ModelMixin`): The model.
        target (`Path`): The folder.

    Raises:
        ValueError: if the folder exists.
    """
    check_new_folder(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    model.save_pretrained(temporary)
    temporary.replace(target)
