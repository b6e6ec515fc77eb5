"""Which encoders a run has to load: none of those whose files are still the ones that its cache was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from ...checkpoints.reading import read_json
from ...checkpoints.writing import written_at_once
from ...tiny import named_model
from ..config.model_section import ModelSection
from ..config.sections import TrainingConfig
from ..data.cache.keys import MODELS, TEXT_MODELS, TOKENIZERS, digest


HASHES = "models.json"
"""The file in a cache that has the models' hashes, by what tells their files from others."""


def recall_hashes(config: TrainingConfig) -> dict[str, str] | None:
    """Return the hashes of the models that a cache was made with, if their files have not changed since.

    Args:
        config (`TrainingConfig`): The configuration.

    Returns:
        `dict[str, str]`, *optional*: by component; `None` if the models have to be loaded to tell.
    """
    files = _fingerprint(config.model)
    if config.data.cache is None or files is None or not (path := Path(config.data.cache) / HASHES).is_file():
        return None
    found: dict[str, str] | None = read_json(path).get(files)
    return found


def remember_hashes(config: TrainingConfig, hashes: Mapping[str, str]) -> None:
    """Write the hashes of loaded models into a cache.

    Args:
        config (`TrainingConfig`): The configuration.
        hashes (`Mapping[str, str]`): By component; see [`model_hashes`].
    """
    files = _fingerprint(config.model)
    if config.data.cache is None or files is None:
        return
    path = Path(config.data.cache) / HASHES
    known = read_json(path) if path.is_file() else {}
    if known.get(files) != dict(hashes):
        with written_at_once(path) as temporary:
            temporary.write_text(json.dumps({**known, files: dict(hashes)}, indent=1) + "\n", encoding="utf-8")


def spared_encoders(config: TrainingConfig) -> tuple[str, ...]:
    """Return the encoders that a run with a complete cache does without: what draws images needs the VAE."""
    draws = config.validation.images_every or config.distill is not None
    return TEXT_MODELS if draws else (*TEXT_MODELS, "vae")


def model_folder(section: ModelSection) -> Path | None:
    """Return the folder of a model on this machine, `None` if it has to be downloaded."""
    path = named_model(section.path)
    if Path(path).is_dir():
        return Path(path)
    found = try_to_load_from_cache(path, "model_index.json", revision=section.revision)
    return Path(found).parent if isinstance(found, str) else None


def _fingerprint(section: ModelSection) -> str | None:
    folder = model_folder(section)
    if folder is None:
        return None
    files = [
        path
        for name in (*MODELS, *TOKENIZERS.values())
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    ]
    facts = [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return digest([str(folder.resolve()), section.dtype, facts])
