"""LoRAs in repositories of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ..._compat import fetch_lora_state_dict
from ...checkpoints.hub import is_repository
from ..errors import LoRAError
from ..files import ADAPTER_CONFIG, PICKLES
from .scale import PEFT_HEADER


HUB_ARGUMENTS = (
    "weight_name", "subfolder", "revision", "token", "cache_dir", "force_download", "proxies", "local_files_only",
    "use_safetensors",
)  # fmt: skip
FILES = (".safetensors", *PICKLES)


def check_hub_arguments(hub: Mapping[str, Any]) -> None:
    """Raise a `TypeError` if there are arguments that the Hub does not take."""
    if not hub.keys() <= set(HUB_ARGUMENTS):
        raise TypeError(
            f"Unknown arguments {sorted(hub.keys() - set(HUB_ARGUMENTS))}; expected some of {HUB_ARGUMENTS}."
        )


def find_source(source: Any, metadata: Any, adapter_config: Any, hub: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Find a LoRA in a folder or a repository.

    Args:
        source: The user's source; files and tensors are returned as they are.
        metadata, adapter_config: Header and config that the user gave; by default those of the repository.
        hub (`Mapping[str, Any]`): Arguments for the Hub.

    Returns:
        `tuple`: The source, the header and the config to read.

    Raises:
        LoRAError: If a file of the repository cannot be fetched.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        return Path(source) / (hub.get("subfolder") or "") / (hub.get("weight_name") or ""), metadata, adapter_config
    if not isinstance(source, str) or Path(source).exists() or not is_repository(source, FILES):
        return source, metadata, adapter_config
    local, found, config = _download(source, hub)
    return local, found if metadata is None else metadata, config if adapter_config is None else adapter_config


def _download(repository: str, hub: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return the LoRA of a repository, as a path where its file is named, its header, and PEFT's config beside it."""
    names = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only")
    given = {name: hub[name] for name in names if hub.get(name) is not None}
    name, config = hub.get("weight_name"), None
    if name is None or name.startswith("adapter_model"):
        try:
            config = json.loads(Path(hf_hub_download(repository, ADAPTER_CONFIG, **given)).read_text())
        except (OSError, ValueError):
            config = None
    if name is not None:
        try:
            return hf_hub_download(repository, name, **given), None, config
        except (OSError, ValueError) as error:
            raise LoRAError(f"`{name}` of the repository `{repository}` cannot be fetched: {error}") from error
    tensors, found = fetch_lora_state_dict(repository, **hub)
    return tensors, {PEFT_HEADER: json.dumps(dict(found))} if found else {}, config
