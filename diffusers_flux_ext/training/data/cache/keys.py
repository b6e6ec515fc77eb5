"""Names by content: what a cached sample was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ....checkpoints.messages import shorten
from ..dataset import TrainingData
from ..records import Item
from .encoding import EncodeOptions


VERSION = 1
"""Of the format; files of another one are made again."""

TEXT_MODELS = ("text_encoder", "text_encoder_2")
MODELS = ("vae", *TEXT_MODELS, "image_encoder")
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
# Of a configuration, what does not change what is computed, or stands in the weights.
_NOT_COMPUTED = ("transformers_version", "dtype", "torch_dtype", "architectures")


def digest(value: Any) -> str:
    """Return the hash of a value made of lists, mappings, texts and numbers.

    Args:
        value (`Any`): The value.

    Returns:
        `str`: 32 hexadecimal digits.

    Raises:
        ValueError: if it holds something else.
    """
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    except TypeError as error:
        raise ValueError(f"A value of a data set must be text, a number or a list of them: {error}.") from error
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def bytes_digest(content: bytes) -> str:
    """Return the hash of a file's content, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def files_digest(path: str) -> str:
    """Return the hash of a file's content, or of all files of a folder, 32 hexadecimal digits."""
    root, found = Path(path), []
    for file in sorted(each for each in root.rglob("*") if each.is_file()) if root.is_dir() else [root]:
        with file.open("rb") as opened:
            found.append([str(file.relative_to(root)), hashlib.file_digest(opened, "blake2b").hexdigest()])
    return digest(found)


def module_digest(module: torch.nn.Module | None) -> str:
    """Return the hash of a model's configuration and weights; about a second per gigabyte.

    Args:
        module (`torch.nn.Module`, *optional*): The model.

    Returns:
        `str`: 32 hexadecimal digits.

    Raises:
        ValueError: if its weights are not in memory, as with offloading.
    """
    hashed = hashlib.blake2b(digest_size=16)
    if module is None:
        return hashed.hexdigest()
    hashed.update(type(module).__name__.encode())
    hashed.update(_config_facts(module).encode())
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor) or value.is_meta:
            raise ValueError(
                f"`{shorten(name)}` of {type(module).__name__} is not in memory, so the model cannot be told from "
                f"others. Give `model_hash`, such as the hash of its files."
            )
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _config_facts(module: torch.nn.Module) -> str:
    config: Any = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return repr(sorted((key, repr(value)) for key, value in values.items() if _is_computed_with(key)))


def _is_computed_with(key: str) -> bool:
    return not key.startswith("_") and key not in _NOT_COMPUTED


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the hash of how a tokenizer splits texts, 32 hexadecimal digits.

    Args:
        tokenizer (`transformers.PreTrainedTokenizerBase`, *optional*): The tokenizer.

    Returns:
        `str`
    """
    if tokenizer is None:
        return digest(None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    # Calls set them.
    for name in ("truncation", "padding"):
        rules.pop(name, None)
    return digest([type(tokenizer).__name__, rules or tokenizer.get_vocab(), str(tokenizer.special_tokens_map)])


def model_hashes(pipe: Any, model_hash: str | Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what tells a pipeline's models from others; those of texts with their tokenizers.

    Args:
        pipe (`FluxPipeline`): The pipeline.
        model_hash (`str` or `Mapping[str, str]`, *optional*): Stands for all of them, or those by component.

    Returns:
        `dict[str, str]`: by component.
    """
    if isinstance(model_hash, Mapping):
        return dict(model_hash)
    if model_hash is not None:
        return dict.fromkeys(MODELS, model_hash)
    found = {name: module_digest(getattr(pipe, name, None)) for name in MODELS}
    splits = {name: tokenizer_digest(getattr(pipe, tokenizer, None)) for name, tokenizer in TOKENIZERS.items()}
    return found | {name: digest([found[name], split]) for name, split in splits.items()}


def prompt_key(text: str, models: Mapping[str, str], options: EncodeOptions) -> str:
    """Return the name of an encoded caption."""
    used = [models[name] for name in TEXT_MODELS]
    return digest([VERSION, "prompt", text, used, options.text_length, str(options.dtype)])


def sample_key(
    data: TrainingData,
    item: Item,
    variant: int,
    files: Mapping[str, Sequence[str]],
    models: Mapping[str, str],
    conditions: Any,
    options: EncodeOptions,
) -> str:
    """Return the name of an encoded sample.

    Args:
        data (`TrainingData`): The data.
        item (`Item`): The sample.
        variant (`int`): Which variant of the transform.
        files (`Mapping[str, Sequence[str]]`): Hashes of its files, by column.
        models (`Mapping[str, str]`): Hashes of the models.
        conditions (`Any`): What tells the conditions and their options from others.
        options (`EncodeOptions`): What is computed.

    Returns:
        `str`
    """
    row = data.row(item.entry, item.row)
    drawn = data.drawn(item, variant)
    values = {name: row.values.get(name) for name in data.needed}
    columns = {name: (data.columns.is_mask(name), data.columns.is_sized(name)) for name in files}
    roles = [data.columns.target, data.columns.loss_mask]
    transform = [data.transform.resize, list(data.transform.color_columns), list(data.transform.flip_columns)]
    own_sizes = repr(data.sizes) if data.transform.resize == "reference" else ""
    return digest(
        [
            VERSION, "sample", files, values, columns, roles, item.size, asdict(drawn), transform, own_sizes,
            asdict(data.images), models, conditions, options.text_length, options.posterior,
            str(options.dtype), *(["guided"] if options.guided else []),
        ]
    )  # fmt: skip
