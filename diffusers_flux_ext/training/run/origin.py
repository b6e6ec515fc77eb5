"""What tells a run from others: in its checkpoints, and in the files that it exports."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..config.sections import TrainingConfig
from ..data import TrainingData
from ..data.cache.keys import files_digest
from ..trained import ExportInfo


def data_hash(data: TrainingData) -> str:
    """Return a hash of the rows of all sources, with the names of their files, for the files that are exported."""
    rows = [
        [str(key) + str(value) for each in (row.values, row.files) for key, value in sorted(each.items())]
        for entry in data.entries
        for row in map(entry.source.row, range(len(entry.source)))
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def run_identity(config: TrainingConfig, processes: int, rows: str) -> dict[str, Any]:
    """Return what a run goes on under: other processes may take it over if an update has as many batches as before.

    Args:
        config (`TrainingConfig`): The configuration.
        processes (`int`): How many processes train.
        rows (`str`): The hash of the data; see [`data_hash`].

    Returns:
        `dict[str, Any]`: what JSON can hold.
    """
    whole = config.identity()
    started = [*(each.path for each in config.train.base_loras or []), config.train.init_from]
    files = [path for path in started if path is not None and Path(path).exists()]
    whole["content of"] = {"the rows of the data": rows, **{path: files_digest(path) for path in files}}
    whole["run"]["accumulation * processes"] = whole["run"].pop("accumulation") * processes
    return whole


def export_info(config: TrainingConfig, data: TrainingData, updates: int, rows: str) -> ExportInfo:
    """Return what is noted in exported files; arguments as above, and the number of updates."""
    drawn = config.loss.levels
    scheme = ", ".join([drawn.name, *(f"{name} {value}" for name, value in drawn.options.items())])
    guidance = config.model.guidance
    return ExportInfo(
        base=config.model.path,
        license=config.export.license,
        title=config.export.title,
        sigma_scheme=scheme,
        guidance=guidance if isinstance(guidance, (int, float)) else None,
        resolution=", ".join(sorted({f"{item.size[1]}x{item.size[0]}" for item in data.items})[:8]),
        steps=updates,
        seed=config.seed,
        data_hash=rows,
    )
