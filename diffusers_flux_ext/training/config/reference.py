"""The arguments of DiffSynth-Studio's training script, and what becomes of each."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from .reading import ConfigurationError, read_config
from .reference_conditions import TRAINABLE, conditions_of


@dataclass(frozen=True)
class Argument:
    """An argument of the script.

    Args:
        ours (`str`): Our entry, or why there is none.
        kind (`str`): `"mapped"`, `"automatic"` (nothing to set here) or `"refused"`.
        flag (`bool`): Whether it takes no value.
    """

    ours: str
    kind: str = "mapped"
    flag: bool = False


def _automatic(ours: str, flag: bool = False) -> Argument:
    return Argument(ours, "automatic", flag)


def _refused(ours: str, flag: bool = False) -> Argument:
    return Argument(ours, "refused", flag)


ARGUMENTS: Mapping[str, Argument] = {
    "dataset_base_path": Argument("`data.sources.0.base`; paths that leave it are refused unless `allow_outside`"),
    "dataset_metadata_path": Argument("`data.sources.0.path`"),
    "dataset_repeat": Argument("`data.sources.0.repeats`"),
    "dataset_num_workers": Argument("`data.workers`"),
    "data_file_keys": Argument("`data.sources.0.file_columns`"),
    "height": Argument("`data.sizes.listed`, with `width`"),
    "width": Argument("`data.sizes.listed`, with `height`"),
    "max_pixels": Argument("`data.sizes.reference.max_pixels`"),
    "model_paths": _refused("give the model as a folder or repository in diffusers' layout, `model.path`"),
    "model_id_with_origin_paths": Argument("`model.path`: the repository of the transformer"),
    "extra_inputs": Argument("`conditions` that read these columns"),
    "fp8_models": Argument("`model.storage: fp8`, with a scale for each row, if the transformer is among them"),
    "offload_models": _refused("with `data.cache`, encoders are dropped from memory after caching"),
    "quant_options": _refused("load a quantised pipeline and train it with `FluxTraining`"),
    "resume_from_checkpoint": _refused("a run goes on by itself; start from weights by `model.path`"),
    "learning_rate": Argument("`optimizer.lr`"),
    "num_epochs": Argument("`run.epochs`"),
    "trainable_models": Argument("`train.weights` for `dit`; a condition's module with `train: true` for others"),
    "find_unused_parameters": _automatic("set where it is needed", flag=True),
    "weight_decay": Argument("`optimizer.weight_decay`"),
    "task": Argument("`sft`; `sft:data_process` and `sft:train` are `data.cache` and `--stage`; else see `distill`"),
    "customized_optimizer": Argument("`optimizer.name`, as `module.Class`"),
    "output_path": Argument("`output`"),
    "remove_prefix_in_ckpt": _automatic("files are written in the layouts of `export.formats`"),
    "save_steps": Argument("`run.save_every`, in updates rather than batches of one process"),
    "lora_base_model": Argument("`train.lora` for `dit`; `text_encoder_lora`, `text_encoder_2_lora`"),
    "lora_target_modules": Argument("`train.lora.targets`: the recipes' list is the preset `reference`"),
    "lora_rank": Argument("`train.lora.rank`; alpha is the rank"),
    "lora_checkpoint": Argument("`train.init_from`"),
    "preset_lora_path": Argument("`train.base_loras.0.path`, with `fused: true`"),
    "preset_lora_model": Argument("`dit` only; see `preset_lora_path`"),
    "use_gradient_checkpointing": Argument("`model.gradient_checkpointing`", flag=True),
    "use_gradient_checkpointing_offload": Argument(
        "`model.gradient_checkpointing` with `model.offload_activations`", flag=True
    ),
    "gradient_accumulation_steps": Argument("`run.accumulation`"),
    "template_model_id_or_path": _refused("it is not for FLUX.1"),
    "enable_lora_hot_loading": _refused("it is not for FLUX.1", flag=True),
    "enable_model_cpu_offload": Argument(
        "`model.resident: 0GB` with `model.gradient_checkpointing`; blocks must be frozen", flag=True
    ),
    "enable_optimizer_cpu_offload": _refused(
        "moments stay on the device; `optimizer.name: adamw8bit` makes them a quarter", flag=True
    ),
    "cpu_offload_split_threshold": _automatic("whole blocks are streamed"),
    "enable_tensorboard_log": Argument("`run.logs`", flag=True),
    "enable_swanlab_log": Argument("`run.logs`", flag=True),
    "enable_wandb_log": Argument("`run.logs`", flag=True),
    "enable_csv_log": Argument("`run.logs`", flag=True),
    "swanlab_project": _automatic("the project is `diffusers_flux_ext`"),
    "wandb_project": _automatic("the project is `diffusers_flux_ext`"),
    "tokenizer_1_path": _refused("tokenizers come with `model.path`"),
    "tokenizer_2_path": _refused("tokenizers come with `model.path`"),
    "align_to_opensource_format": Argument("`export.formats: [kohya]`; without it `[diffsynth]`", flag=True),
}
"""Every argument of the script, in its order."""

_TARGETS = (
    "a_to_qkv,b_to_qkv,ff_a.0,ff_a.2,ff_b.0,ff_b.2,a_to_out,b_to_out,proj_out,norm.linear,norm1_a.linear,"
    "norm1_b.linear,to_qkv_mlp"
)
_LORA_MODELS = {"dit": "lora", "text_encoder_1": "text_encoder_lora", "text_encoder_2": "text_encoder_2_lora"}
_PASSED = {
    "dataset_repeat": "data.sources.0.repeats",
    "dataset_num_workers": "data.workers",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "num_epochs": "run.epochs",
    "customized_optimizer": "optimizer.name",
    "output_path": "output",
    "save_steps": "run.save_every",
    "gradient_accumulation_steps": "run.accumulation",
    "lora_checkpoint": "train.init_from",
    "use_gradient_checkpointing": "model.gradient_checkpointing",
    "dataset_metadata_path": "data.sources.0.path",
    "dataset_base_path": "data.sources.0.base",
}


@dataclass
class _Reader:
    values: dict[str, str]
    content: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, place: str, value: Any) -> None:
        *parts, last = place.split(".")
        section: Any = self.content
        for part in parts:
            section = section[int(part)] if part.isdecimal() else section.setdefault(part, {})
        section[last] = value


def from_reference_args(line: str) -> str:
    """Translate a command line of DiffSynth-Studio's FLUX training script.

    The distribution of noise levels, their weights, the guidance and the LoRA's parametrisation are the script's.

    Args:
        line (`str`): The arguments, with or without what stands before them.

    Returns:
        `str`: our configuration as YAML, with comments on what has to be looked at.

    Raises:
        ConfigurationError: if an argument is unknown or refused.
    """
    reader = _Reader(_split(line))
    reader.content = {
        "output": "./models",
        "model": {"path": "black-forest-labs/FLUX.1-dev", "dtype": "bfloat16", "guidance": 1.0},
        "data": {"sources": [{"path": "", "file_columns": ["image", "video"]}], "transform": {"resize": "reference"}},
        "loss": {"levels": {"name": "reference"}, "weighting": {"name": "bell"}, "stratified": False},
        "optimizer": {"lr": 1e-4, "weight_decay": 0.01},
        "schedule": {"name": "constant", "warmup": 0},
        "run": {"epochs": 1, "clip": None},
    }
    for name, place in _PASSED.items():
        if name in reader.values:
            reader.put(place, _value(reader.values[name]))
    for step in (_read_model, _read_data, _read_conditions, _read_trained, _read_logs, _read_task):
        step(reader)
    read_config(reader.content)
    notes = "".join(f"# {note}\n" for note in reader.notes)
    return notes + yaml.safe_dump(reader.content, sort_keys=False, allow_unicode=True)


def _split(line: str) -> dict[str, str]:
    words = shlex.split(line.replace("\\\n", " "))
    while words and not words[0].startswith("--"):
        words.pop(0)
    values: dict[str, str] = {}
    refused = []
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name, ARGUMENTS, 1)
            raise ConfigurationError(
                f"DiffSynth-Studio's script has no argument {word!r}"
                + (f"; did you mean --{near[0]}?" if near else ".")
            )
        if ARGUMENTS[name].flag:
            values[name] = "true"
        elif equals:
            values[name] = value
        elif words and not words[0].startswith("--"):
            values[name] = words.pop(0)
        else:
            raise ConfigurationError(f"--{name} has no value.")
        if ARGUMENTS[name].kind == "refused":
            refused.append(f"--{name}: {ARGUMENTS[name].ours}")
    if refused:
        raise ConfigurationError("These arguments have no counterpart:\n" + "\n".join(f"- {each}" for each in refused))
    return values


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _transformers(given: str) -> list[str]:
    """Return the repositories in a list of models whose file is neither a text encoder nor the VAE."""
    parts = [part.partition(":")[::2] for part in given.split(",") if part]
    return [name for name, file in parts if "/" in name and not file.startswith(("text_encoder", "ae."))]


def _read_model(reader: _Reader) -> None:
    bases = _transformers(reader.values.get("model_id_with_origin_paths", ""))
    if set(_transformers(reader.values.get("fp8_models", ""))) & set(bases[:1] or ["black-forest-labs/FLUX.1-dev"]):
        reader.put("model.storage", "fp8")
    offload = {"use_gradient_checkpointing_offload": "offload_activations", "enable_model_cpu_offload": "resident"}
    for name, ours in offload.items():
        if name in reader.values:
            reader.put("model.gradient_checkpointing", True)
            reader.put(f"model.{ours}", "0GB" if ours == "resident" else True)
    if bases:
        reader.put("model.path", bases[0])
        for other in dict.fromkeys(name for name in bases[1:] if name != bases[0]):
            reader.notes.append(f"{other} is a module of a condition: give it under `conditions`, `modules`.")


def _read_data(reader: _Reader) -> None:
    values = reader.values
    if "dataset_metadata_path" not in values:
        raise ConfigurationError("--dataset_metadata_path is missing; the second stage of a split needs it here, too.")
    if "data_file_keys" in values:
        reader.put("data.sources.0.file_columns", values["data_file_keys"].split(","))
    if ("height" in values) != ("width" in values):
        raise ConfigurationError("--height and --width belong together: alone, the script ignores each of them.")
    if "height" in values:
        size = [int(values["height"]), int(values["width"])]
        reader.put("data.sizes", {"listed": {"listed": [size]}})
    else:
        reader.put("data.sizes", {"reference": {"max_pixels": int(values.get("max_pixels", 1024 * 1024))}})


def _read_conditions(reader: _Reader) -> None:
    columns = [column for column in reader.values.get("extra_inputs", "").split(",") if column]
    trained = [model for model in reader.values.get("trainable_models", "").split(",") if model]
    try:
        reader.content["conditions"] = conditions_of(columns, trained)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    for condition in reader.content["conditions"]:
        for name, module in condition.get("modules", {}).items():
            reader.notes.append(f"Replace PATH of `{name}` by the folder or file of the {module['kind']}.")
            if module["train"]:
                reader.put("optimizer.rounding", "stochastic")


def _read_trained(reader: _Reader) -> None:
    values, named = reader.values, reader.values.get("trainable_models", "")
    for model in filter(None, named.split(",")):
        if model == "dit":
            reader.put("train.weights", ["*"])
            reader.notes.append("In bfloat16 small steps are lost, so weights are rounded stochastically.")
            reader.put("optimizer.rounding", "stochastic")
        elif model not in TRAINABLE.values():
            raise ConfigurationError(f"--trainable_models has {model!r}, which is not trained here; see the table.")
    base = values.get("lora_base_model")
    if base is None:
        return
    if base not in _LORA_MODELS:
        raise ConfigurationError(f"--lora_base_model is {base!r}; expected one of {sorted(_LORA_MODELS)}.")
    targets: Any = sorted(values.get("lora_target_modules", "").split(","))
    if base == "dit" and (targets in ([""], sorted(_TARGETS.split(",")))):
        chosen = {"targets": "reference", "tied": True}
    else:
        raise ConfigurationError(
            "--lora_target_modules names other layers than the recipes. Give `train.lora.targets` by hand, in "
            "diffusers' names."
        )
    if "preset_lora_path" in values:
        if values.get("preset_lora_model", "dit") != "dit":
            raise ConfigurationError(f"--preset_lora_model is {values['preset_lora_model']!r}; expected 'dit'.")
        reader.put("train.base_loras", [{"path": values["preset_lora_path"], "fused": True}])
    reader.put(f"train.{_LORA_MODELS[base]}", {**chosen, "rank": int(values.get("lora_rank", 32))})
    formats = ["kohya"] if "align_to_opensource_format" in values else ["diffsynth"]
    reader.put("export.formats", formats)


def _read_logs(reader: _Reader) -> None:
    logs = {"tensorboard": "tensorboard", "swanlab": "swanlab", "wandb": "wandb", "csv": "csv"}
    reader.put("run.logs", ["jsonl", *(ours for name, ours in logs.items() if f"enable_{name}_log" in reader.values)])


def _read_task(reader: _Reader) -> None:
    task = reader.values.get("task", "sft")
    if task not in ("sft", "sft:data_process", "sft:train"):
        raise ConfigurationError(
            f"--task is {task!r}; expected 'sft', 'sft:data_process' or 'sft:train'. A distillation has other inputs "
            f"here, which docs/training_distill.md explains: write its `distill` section by hand."
        )
    if ":" in task:
        reader.put("data.cache", f"{reader.content['output']}/cache")
        reader.notes.append("Run it with `--stage cache` first, or let one run do both.")


def table() -> str:
    """Return the table of all arguments, in Markdown."""
    rows = [
        f"| `--{name}` | {each.ours if each.kind == 'mapped' else f'{each.kind}: {each.ours}'} |"
        for name, each in ARGUMENTS.items()
    ]
    return "\n".join(["| argument | here |", "|---|---|", *rows]) + "\n"
