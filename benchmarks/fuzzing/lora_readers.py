"""Everything that takes LoRA files, given files of every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file

from benchmarks.support.lora_files import FORMATS, LoRAFile, Sizes, cases, make
from benchmarks.support.lora_files.readers import components
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    detect_lora_format,
    load_lora,
    load_timestep_lora,
    unload_lora,
)
from diffusers_flux_ext.cli.main import main as command
from diffusers_flux_ext.lora.layouts import LORA_LAYOUTS
from diffusers_flux_ext.testing import quiet, tiny_pipeline, tiny_transformer

from .lora_mutations import LORA
from .reader import Reader


NAME, CONFIG = "adapter_model.safetensors", "adapter_config.json"
RICH = ("pattern_of_regex", "alpha_with_both", "with_both", "everything")
Call = Callable[[Path, Path], Any]


def _whole(file: LoRAFile) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in file.state_dict.items()}, file.metadata)


@cache
def every_format() -> tuple[bytes, ...]:
    """Return a file of every format, with alphas, patterns and text encoders where it can have them."""
    return tuple(
        _whole(make(name, next((case for case in RICH if case in cases(name)), "default"))) for name in FORMATS
    )


def _first(folder: Path) -> Path:
    (folder / NAME).write_bytes(every_format()[0])
    return folder / NAME


def _pickled(name: str, case: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        torch.save(make(name, case).state_dict, folder / "lora.pt")
        return folder / "lora.pt"

    return build


def _with_config(changed: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        file = make("peft_basemodel", "pattern_of_suffix")
        (folder / NAME).write_bytes(_whole(file))
        (folder / CONFIG).write_text(json.dumps(file.adapter_config))
        return folder / changed

    return build


# ---- tools --------------------------------------------------------------------------------------------------------


def tool(name: str, *options: str, source: Callable[[Path], Path] = Path) -> Call:
    """Call a command that writes a file."""

    def call(path: Path, target: Path) -> int:
        out = target.with_suffix(".safetensors")
        return command(
            ["lora", name, str(source(path)), *(["--out"] if name != "convert" else []), str(out), *options]
        )

    return call


def _inspect(path: Path, target: Path) -> int:
    detect_lora_format(path)
    return command(["lora", "inspect", str(path)])


def _convert(path: Path, target: Path) -> int:
    layouts = sorted(LORA_LAYOUTS)
    return tool("convert", "--to", layouts[path.stat().st_size % len(layouts)])(path, target)


def _merge(path: Path, target: Path) -> int:
    out, layout = target.with_suffix(".safetensors"), ("kohya", "diffusers")[path.stat().st_size % 2]
    sources = (str(path), str(path))
    return command(["lora", "merge", *sources, "--weights", "0.5", "2", "--rank", "3", "--to", layout, "--no-strict",
                    "--out", str(out)])  # fmt: skip


def _checkpoints(folder: Path) -> Path:
    """Two transformers and a LoRA, of which the second transformer is changed."""
    for seed, name in enumerate(("other.safetensors", "changed.safetensors")):
        save_file(tiny_transformer(seed, num_layers=2, num_single_layers=2).state_dict(), folder / name)
    (folder / "lora.safetensors").write_bytes(_whole(make("kohya")))
    return folder / "changed.safetensors"


def _fuse(path: Path, target: Path) -> int:
    checkpoint = path.parent / "other.safetensors"
    if not checkpoint.exists():
        _checkpoints(path.parent)
    arguments = (str(checkpoint), str(path), "--out", str(target.with_suffix(".safetensors")), "--no-strict")
    return command(["lora", "fuse", *arguments])


def _fuse_into(path: Path, target: Path) -> int:
    out = target.with_suffix(".safetensors")
    return command(["lora", "fuse", str(path), str(path.parent / "lora.safetensors"), "--out", str(out)])


def _extract(side: str) -> Call:
    def call(path: Path, target: Path) -> int:
        sides = {"--base": path.parent / "other.safetensors", "--tuned": path.parent / "other.safetensors", side: path}
        arguments = [str(argument) for pair in sides.items() for argument in pair]
        return command(
            ["lora", "extract", *arguments, "--rank", "2", "--out", str(target.with_suffix(".safetensors"))]
        )

    return call


@cache
def _pipeline() -> Any:
    return quiet(FluxConditionedPipeline(**components(Sizes())))


def _load(path: Path, target: Path) -> None:
    pipe = _pipeline()
    try:
        load_lora(pipe, path)
    finally:
        unload_lora(pipe)


def _load_weights(path: Path, target: Path) -> None:
    pipe = _pipeline()
    try:
        pipe.load_lora_weights(path, strict=False)
    finally:
        pipe.unload_lora_weights()


def _state_dict(path: Path, target: Path) -> None:
    FluxConditionedPipeline.lora_state_dict(str(path), return_alphas=True)


def _timed(folder: Path) -> Path:
    save_file(tiny_timestep_lora(), folder / NAME)
    return folder / NAME


@cache
def _timed_pipeline() -> Any:
    return tiny_pipeline(FluxConditionedPipeline)


def _load_timed(path: Path, target: Path) -> None:
    pipe = _timed_pipeline()
    try:
        load_timestep_lora(pipe, path)
    finally:
        unload_lora(pipe)


def _of_all_formats(name: str, call: Call) -> Reader:
    return Reader(f"lora {name}", _first, call, mutations=LORA, others=every_format)


READERS: tuple[Reader, ...] = (
    _of_all_formats("inspect", _inspect),
    _of_all_formats("convert", _convert),
    _of_all_formats("convert, not strict", tool("convert", "--no-strict", "--dtype", "float8_e4m3fn")),
    _of_all_formats("merge", _merge),
    _of_all_formats("resize", tool("resize", "--energy", "0.5", "--no-strict")),
    _of_all_formats("fuse", _fuse),
    _of_all_formats("load", _load),
    _of_all_formats("load_lora_weights", _load_weights),
    _of_all_formats("lora_state_dict", _state_dict),
    Reader("lora pickle", _pickled("kohya", "alpha_with_both"), tool("convert", "--no-strict")),
    Reader("lora pickle, loaded", _pickled("kohya_lokr", "default"), _load),
    Reader("lora folder", _with_config(NAME), tool("convert", source=lambda path: path.parent), mutations=LORA),
    Reader("lora config", _with_config(CONFIG), tool("convert", source=lambda path: path.parent)),
    Reader("lora timestep", _timed, _load_timed, mutations=LORA),
    Reader("lora extract, base", _checkpoints, _extract("--base")),
    Reader("lora extract, tuned", _checkpoints, _extract("--tuned")),
    Reader("lora fuse, checkpoint", _checkpoints, _fuse_into),
)
