"""A text that belongs to no sample, such as a negative prompt, in the files of a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .encoding import EncodeOptions, Prompt, encode_prompt
from .keys import prompt_key
from .shards import ShardWriter, read_contents


def cached_prompt(
    text: str,
    pipe: Any | Callable[[], Any],
    folder: str | Path,
    models: Mapping[str, str],
    options: EncodeOptions = EncodeOptions(),
) -> tuple[str, Prompt]:
    """Encode a text, or read it if it was encoded before.

    Args:
        text (`str`): The text.
        pipe (`FluxPipeline` or `Callable`): Gives the text encoders, or a function that loads them if they are needed.
        folder (`str` or `Path`): The folder of a cache.
        models (`Mapping[str, str]`): Hashes of the models; see [`model_hashes`].
        options (`EncodeOptions`): Length and data type.

    Returns:
        `tuple[str, Prompt]`: its name by content, and what the encoders returned.

    Raises:
        OSError: if it cannot be written.
    """
    key, root = prompt_key(text, models, options), Path(folder)
    if key not in read_contents(root).prompts:
        writer = ShardWriter(root, 1)
        writer.add_prompt(key, encode_prompt(pipe if hasattr(pipe, "vae") else pipe(), text, options))
    name = read_contents(root).prompts[key]
    with safe_open(root / name, framework="pt") as file:
        return key, (file.get_tensor(f"prompts/{key}/hidden_states"), file.get_tensor(f"prompts/{key}/pooled"))
