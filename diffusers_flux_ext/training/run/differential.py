"""A differential LoRA: ordinary runs one after the other, and the mean of their results."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.writing import save_tensors
from ...lora.tools.algebra import merge_loras
from ..config.sections import TrainingConfig
from ..config.task_sections import DifferentialSection, PairSection
from ..config.train_section import BaseLoRASection
from .build import Run, build_run
from .checks import check_run
from .model import DTYPES


Say = Callable[[str], None]


def _say_nothing(text: str) -> None:
    """Report nothing."""


FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Stage:
    """One of the runs.

    Args:
        name (`str`): What it does, in words.
        config (`TrainingConfig`): Its configuration.
        is_second (`bool`): Whether its LoRA belongs to the result.
    """

    name: str
    config: TrainingConfig
    is_second: bool

    @property
    def file(self) -> Path:
        """The LoRA that it writes."""
        return Path(self.config.output) / "result" / FILE


def stages(config: TrainingConfig) -> list[Stage]:
    """Return the runs of a differential LoRA, in order.

    Args:
        config (`TrainingConfig`): A configuration with `differential`.

    Returns:
        `list[Stage]`: for each pair the run of the first LoRA, unless it is given, and that of the second.
    """
    section = _section(config)
    return [stage for number, pair in enumerate(section.pairs) for stage in _of_pair(config, section, number, pair)]


def _section(config: TrainingConfig) -> DifferentialSection:
    if config.differential is None:
        raise ValueError("The configuration has no `differential`.")
    return config.differential


def _of_pair(config: TrainingConfig, section: DifferentialSection, number: int, pair: PairSection) -> list[Stage]:
    found, given, title = [], pair.lora, f"pair {number + 1} of {len(section.pairs)}"
    if pair.first is not None:
        run = config.run
        if section.first_updates is not None:
            run = run.model_copy(update={"updates": section.first_updates, "epochs": None})
        own = _stage_config(config, number, "first", pair.first, run=run)
        found.append(Stage(f"{title}: the first LoRA", own, False))
        given = str(found[0].file)
    under = [*(config.train.base_loras or []), BaseLoRASection(path=str(given), fused=section.fused)]
    train = config.train.model_copy(update={"base_loras": under})
    second = _stage_config(config, number, "second", pair.second, train=train)
    return [*found, Stage(f"{title}: the second LoRA", second, True)]


def _stage_config(config: TrainingConfig, number: int, name: str, source: Any, **changes: Any) -> TrainingConfig:
    # What the second one is trained on must be what the first one has learnt, to the bit.
    export = config.export.model_copy(update={"formats": ["diffusers"], "dtype": None})
    return config.model_copy(
        update={
            "output": str(Path(config.output) / f"pair-{number + 1}" / name),
            "data": config.data.model_copy(update={"sources": [source]}),
            "differential": None,
            "export": export,
            **changes,
        }
    )


def check_differential(config: TrainingConfig) -> list[tuple[Stage, Any]]:
    """Check all runs before the first one: names, packages, the headers of all samples, and LoRAs that are given.

    Args:
        config (`TrainingConfig`): A configuration with `differential`.

    Returns:
        `list[tuple[Stage, DataReport]]`

    Raises:
        ValueError: if something is wrong.
        FileNotFoundError: if a LoRA is missing.
    """
    section = _section(config)
    for pair in section.pairs:
        if pair.lora is not None and not Path(pair.lora).exists():
            raise FileNotFoundError(
                f"There is no `{pair.lora}`, which `differential.pairs` names as `lora`. Give a file, or `first` to "
                f"train it."
            )
    made = [str(stage.file) for stage in stages(config)]
    return [(stage, check_run(_without(stage.config, made))[1]) for stage in stages(config)]


def _without(config: TrainingConfig, made: list[str]) -> TrainingConfig:
    """Leave out LoRAs that an earlier run will make."""
    kept = [each for each in config.train.base_loras or [] if each.path not in made]
    return config.model_copy(update={"train": config.train.model_copy(update={"base_loras": kept})})


def run_differential(config: TrainingConfig, accelerator: Any = None, say: Say = _say_nothing) -> list[Path]:
    """Train all LoRAs, continuing where a run stopped, and write the mean of the second ones.

    Args:
        config (`TrainingConfig`): A configuration with `differential`.
        accelerator (`accelerate.Accelerator`, *optional*): For several processes.
        say (`Callable`): Takes reports of what is done.

    Returns:
        `list[Path]`: the exported files; none if the system asked to stop before the end.

    Raises:
        ValueError: if the configuration does not fit the model or the data.
        ConfigurationChangedError: if the output folder belongs to a run of another configuration.
    """
    check_differential(config)
    is_main, metadata = True, {}
    for stage in stages(config):
        run = build_run(stage.config, accelerator)
        if run is None:
            raise RuntimeError("A run ended before its training began.")
        is_main, metadata = run.trainer.is_main, run.info.metadata()
        say(f"{stage.name[0].upper()}{stage.name[1:]}\n{run.report}")
        run()
        if is_main and run.compiled is not None:
            say(run.compiled.describe())
        if run.trainer.step < run.trainer.settings.updates:
            return []
        if accelerator is not None:
            accelerator.wait_for_everyone()
            accelerator.free_memory()
        _forget(run)
        del run
        gc.collect()
    return write_mean(config, metadata, say) if is_main else []


def _forget(run: Run) -> None:
    run.training.close()
    run.trainer.optimizers.clear()


def write_mean(config: TrainingConfig, metadata: Mapping[str, str], say: Say = _say_nothing) -> list[Path]:
    """Write the mean of the second LoRAs, in every layout of the configuration.

    Args:
        config (`TrainingConfig`): A configuration with `differential`.
        metadata (`Mapping[str, str]`): Entries of the headers.
        say (`Callable`): Is told by how much the mean was cut.

    Returns:
        `list[Path]`: the files.
    """
    section, files = _section(config), [stage.file for stage in stages(config) if stage.is_second]
    dtype = None if config.export.dtype is None else DTYPES[config.export.dtype]
    folder, written = Path(config.output) / "result", []
    folder.mkdir(parents=True, exist_ok=True)
    for layout in config.export.formats or ["diffusers"]:
        mean = merge_loras(files, [1 / len(files)] * len(files), to=layout, rank=section.rank, dtype=dtype)
        path = folder / (FILE if layout == "diffusers" else f"lora_{layout}.safetensors")
        save_tensors(mean.state_dict, path, {**mean.metadata, **metadata})
        written.append(path)
        rank = "its whole rank" if section.rank is None else f"rank {section.rank}"
        say(f"Mean of {len(files)} differences as {layout} at {rank}: relative error {mean.error:.2e}")
    return written
