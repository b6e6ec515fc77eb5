"""Where model files come from, with the fields and the folders of DiffSynth-Studio."""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from huggingface_hub import snapshot_download

from ..checkpoints.messages import shorten


logger = logging.get_logger(__name__)

SOURCES = ("modelscope", "huggingface")
WEIGHTS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")
STAGES = ("offload", "onload", "preparing", "computation")
_ALL = (None, "", "./")


@dataclass
class ModelConfig:
    """A model's files: a path, or a repository and a pattern; and where its weights go under a VRAM limit.

    Downloaded files lie at `<local_model_path>/<model_id>/<origin_file_pattern>`, where DiffSynth-Studio puts them,
    so that those that are there are found.

    Args:
        path (`str` or `list[str]`, *optional*):
            A file, a folder with weights, the shards of one model, or the folder of a diffusers pipeline, which gives
            all of its models and tokenizers.
        model_id (`str`, *optional*): A repository, in place of `path`.
        origin_file_pattern (`str`, *optional*):
            Files of the repository, such as `"text_encoder_2/*.safetensors"`; several are shards of one model, a
            trailing `/` means a folder, and nothing means the whole repository.
        download_source (`str`, *optional*):
            `"modelscope"` (needs that package) or `"huggingface"`; the environment's `DIFFSYNTH_DOWNLOAD_SOURCE`, else
            `"modelscope"`, by default.
        local_model_path (`str`, *optional*):
            Where downloads go, `"./models"` by default; `DIFFSYNTH_MODEL_BASE_PATH` of the environment comes first.
        skip_download (`bool`, *optional*): Use what is there; `DIFFSYNTH_SKIP_DOWNLOAD` of the environment by default.
        offload_device, offload_dtype, onload_device, onload_dtype, preparing_device, preparing_dtype, \
computation_device, computation_dtype (*optional*):
            The stages of DiffSynth-Studio's VRAM management, which is on if `offload_device` and `offload_dtype` are
            given; it becomes a VRAM budget, see [`vram_plan_from_diffsynth`].
        clear_parameters (`bool`, defaults to `False`): For training there; raises here.
        state_dict (`dict[str, torch.Tensor]`, *optional*): Tensors in place of a file.
        quantize (*optional*): Raises here: see `docs/migration.md` for quantised weights.
    """

    path: str | list[str] | None = None
    model_id: str | None = None
    origin_file_pattern: str | list[str] | None = None
    download_source: str | None = None
    local_model_path: str | None = None
    skip_download: bool | None = None
    offload_device: str | torch.device | None = None
    offload_dtype: torch.dtype | str | None = None
    onload_device: str | torch.device | None = None
    onload_dtype: torch.dtype | str | None = None
    preparing_device: str | torch.device | None = None
    preparing_dtype: torch.dtype | str | None = None
    computation_device: str | torch.device | None = None
    computation_dtype: torch.dtype | str | None = None
    clear_parameters: bool = False
    state_dict: Mapping[str, torch.Tensor] | None = None
    quantize: Any = None

    def download_if_necessary(self) -> None:
        """Set `path` to local files, downloaded if they have to be.

        Raises:
            ImportError: if the files are at ModelScope and its package is not installed.
            FileNotFoundError: if there are no such files.
            ValueError: if neither a path nor a repository is given.
        """
        self._take_repository_for_path()
        if self.path is None and self.model_id is None:
            raise ValueError(
                'A `ModelConfig` names no files. Give `ModelConfig(path="file.safetensors")` or '
                '`ModelConfig(model_id="owner/name", origin_file_pattern="file.safetensors")`.'
            )
        if self.path is None:
            folder = self._folder()
            if not self._skips_download():
                self._download(folder)
            self.path = self._found(folder)
        if isinstance(self.path, list) and len(self.path) == 1:
            self.path = self.path[0]

    def vram_config(self) -> dict[str, Any]:
        """Return the fields of VRAM management by name."""
        return {
            f"{stage}_{what}": getattr(self, f"{stage}_{what}") for stage in STAGES for what in ("device", "dtype")
        }

    def weight_files(self) -> list[str]:
        """Return the files with weights, after [`~ModelConfig.download_if_necessary`]: those of a folder, or shards.

        Raises:
            FileNotFoundError: if there are none.
        """
        paths = self.path if isinstance(self.path, list) else [str(self.path)]
        files: list[str] = []
        for path in paths:
            files += _in_folder(Path(path)) if os.path.isdir(path) else [os.fspath(path)]
        if len(files) > 1:
            files = [file for file in files if file.endswith(WEIGHTS)]
        if not files:
            raise FileNotFoundError(f"There are no files with weights in `{self.path}`; expected one of {WEIGHTS}.")
        return files

    def _take_repository_for_path(self) -> None:
        # A published script gives a repository's name in the place of the first field.
        path = self.path
        if isinstance(path, str) and self.model_id is None and not os.path.exists(path) and path.count("/") == 1:
            if not path.endswith(WEIGHTS) and self.origin_file_pattern is not None:
                self.path, self.model_id = None, path

    def _folder(self) -> str:
        base = os.environ.get("DIFFSYNTH_MODEL_BASE_PATH") or self.local_model_path or "./models"
        self.local_model_path = base
        return os.path.join(base, str(self.model_id))

    def _patterns(self) -> list[str]:
        given = self.origin_file_pattern if isinstance(self.origin_file_pattern, list) else [self.origin_file_pattern]
        return ["*" if each in _ALL else f"{each}*" if str(each).endswith("/") else str(each) for each in given]

    def _skips_download(self) -> bool:
        if self.skip_download is not None:
            return self.skip_download
        return os.environ.get("DIFFSYNTH_SKIP_DOWNLOAD", "").lower() == "true"

    def _download(self, folder: str) -> None:
        source = (self.download_source or os.environ.get("DIFFSYNTH_DOWNLOAD_SOURCE") or SOURCES[0]).lower()
        if source not in SOURCES:
            raise ValueError(f"`download_source` is {shorten(source)}; expected one of {SOURCES}.")
        patterns = self._patterns()
        present = [name for pattern in patterns for name in glob.glob(pattern, root_dir=folder)]
        if source == "huggingface":
            snapshot_download(str(self.model_id), local_dir=folder, allow_patterns=patterns, ignore_patterns=present)
            return
        try:
            modelscope = importlib.import_module("modelscope")
        except ImportError as error:
            raise ImportError(
                f"`{self.model_id}` is to be downloaded from ModelScope: `pip install modelscope`; or take it from "
                f'the Hub with `ModelConfig(..., download_source="huggingface")` or DIFFSYNTH_DOWNLOAD_SOURCE='
                f"huggingface in the environment; or put the files into `{folder}` and give `skip_download=True`."
            ) from error
        modelscope.snapshot_download(
            self.model_id, local_dir=folder, allow_file_pattern=patterns, ignore_file_pattern=present
        )

    def _found(self, folder: str) -> str | list[str]:
        if self.origin_file_pattern in _ALL:
            found = [folder] if os.path.isdir(folder) else []
        else:
            given = self.origin_file_pattern
            patterns = [str(each) for each in (given if isinstance(given, list) else [given])]
            found = sorted(path for each in patterns for path in glob.glob(os.path.join(folder, each)))
        if not found:
            raise FileNotFoundError(
                f"There are no files `{self.origin_file_pattern}` in `{folder}`. Download them, or name the folder "
                f"above `{self.model_id}` by `local_model_path` or DIFFSYNTH_MODEL_BASE_PATH in the environment."
            )
        return found


def _in_folder(folder: Path) -> list[str]:
    names = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())
    tensors = [path for path in names if path.suffix in (".safetensors", ".sft")]
    return [os.fspath(path) for path in tensors or names]
