"""A run, built from its configuration."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from ...condition import FluxCondition
from ..assemble import BatchMaker
from ..checkpoint import CheckpointFolder
from ..compiling import CompiledBlocks
from ..config.sections import TrainingConfig
from ..data import BatchPlan, CachedSamples, SampleLoader, describe_buckets
from ..draws import Draws
from ..frozen import store_frozen
from ..losses import errors, weighting
from ..module import FluxTraining
from ..optim import ExponentialMovingAverage, averaged_weights, build_optimizer, schedule
from ..streaming import describe_streaming, stream_blocks
from ..text import TextEncoding
from ..trained import (
    ExportInfo,
    Strengths,
    Trained,
    TrainedLoRA,
    TrainedModule,
    TrainedTogether,
    TrainedWeights,
    add_lora,
    fuse_under,
    lay_under,
)
from .batches import drawn_levels, make_batches
from .checks import check_run
from .encoders import recall_hashes, spared_encoders
from .fusion import NAME, add_fusion
from .memory import fit_memory
from .model import DTYPES, choose_device, drop_encoders, encoders_to, load_encoders, load_pipeline
from .monitor import CSVWriter, JSONLinesWriter, Monitor, TensorBoardWriter, TerminalWriter, TrackerWriter, Writer
from .origin import data_hash, export_info, run_identity
from .peaks import StagePeaks
from .processes import WRITERS
from .samples import LoadedUpdates, Part, make_plan, make_samples, split
from .sharding import check_sharding, memory_of, shard, sharding_plugin, warn_if_needless, without_gathered
from .teaching import Lessons, negative_prompt, teach
from .templates import ConditionTemplate, make_templates
from .trainer import RunSettings, Trainer
from .validation import ValidationDistance, ValidationImages, ValidationLoss


logger = logging.get_logger(__name__)


@dataclass(eq=False)
class Run:
    """A run that is ready to train.

    Args:
        config (`TrainingConfig`): The configuration.
        trainer (`Trainer`): The loop.
        training (`FluxTraining`): The module.
        trained (`Trained`): What is trained.
        info (`ExportInfo`): What is noted in exported files.
        report (`str`): The data, the buckets and what is trained, in words.
        peaks (`StagePeaks`): Memory of the stages, complete after training; also in `logs/memory.json`.
        compiled (`CompiledBlocks`, *optional*): The compiled blocks, if `model.compile`.
    """

    config: TrainingConfig
    trainer: Trainer
    training: FluxTraining
    trained: Trained
    info: ExportInfo
    report: str
    peaks: StagePeaks
    compiled: CompiledBlocks | None = None

    def __call__(self) -> list[Path]:
        """Train, continuing from the newest checkpoint, and export the result.

        Returns:
            `list[Path]`: the exported files; none if the system asked to stop before the end.

        Raises:
            ConfigurationChangedError: if the output folder belongs to a run of another configuration.
        """
        with self.training:
            with self.peaks.stage("training"):
                done = self.trainer.run()
            if self.trainer.is_main:
                self.peaks.write(Path(self.config.output) / "logs" / "memory.json")
            if not done:
                return []
            # Weights that are shared out are gathered by all processes together.
            written = self.export() if self.trainer.is_main or self.trainer.is_sharded else []
            return written if self.trainer.is_main else []

    def export(self) -> list[Path]:
        """Write what was trained.

        Returns:
            `list[Path]`: the files and folders.
        """
        average = self.trainer.average
        chosen = average.state() if average is not None and self.config.export.average else None
        with averaged_weights(self.trainer.optimizers):
            return self.trained.export(Path(self.config.output) / "result", self.info, chosen)


def build_run(config: TrainingConfig, accelerator: Any = None, until_cache: bool = False) -> Run | None:
    """Load everything that a run needs, and encode its samples if there is a cache.

    Args:
        config (`TrainingConfig`): The configuration.
        accelerator (`accelerate.Accelerator`, *optional*): For several processes.
        until_cache (`bool`, defaults to `False`): Whether to stop when all samples are encoded.

    Returns:
        `Run`, or `None` if `until_cache`.

    Raises:
        ValueError: if the configuration does not fit the model or the data.
        ConfigurationChangedError: if the output folder belongs to a run of another configuration.
    """
    data, data_report = check_run(config)
    config, memory = fit_memory(config, data)
    check_sharding(config, accelerator, data)
    draws = Draws(config.seed)
    device = choose_device(config.model.device) if accelerator is None else accelerator.device
    hashes = recall_hashes(config)
    pipe = load_pipeline(config.model, **({} if hashes is None else dict.fromkeys(spared_encoders(config))))
    if fused := {each.path: each.weight for each in config.train.base_loras or [] if each.fused}:
        fuse_under(pipe.transformer, fused)
    templates, modules = make_templates(config.conditions, pipe.transformer, config.seed, DTYPES[config.model.dtype])
    encoders_to(pipe, device)
    _move([each for template in templates for each in template.encoders.values()], device)
    processes = _processes(accelerator)
    encoders = pipe if hashes is None else partial(load_encoders, config.model, pipe.transformer, device)
    peaks = StagePeaks(device, memory)
    # Without a cache samples are encoded as they come, and what is in the cache is not encoded again.
    with nullcontext() if config.data.cache is None or hashes is not None else peaks.stage("encoding"):
        samples = make_samples(config, data, encoders, templates, hashes, **processes)
    negative = negative_prompt(config, encoders)
    if until_cache:
        peaks.write(Path(config.output) / "logs" / "memory.json")
        if config.distill is None:
            return None
    if config.data.cache is not None:
        drop_encoders(pipe)
        templates = [ConditionTemplate(each.section, each.make, each.modules) for each in templates]
    sharding = sharding_plugin(accelerator)
    if sharding is not None:
        warn_if_needless(config, pipe.transformer, memory_of(device))
    # What is shared out comes to the device block by block.
    _lay_out(config, pipe, device if sharding is None else torch.device("cpu"))
    conditions = [template.bare() for template in templates]
    _move([each for template in templates for each in template.modules.values()], device)
    chosen, held = split(samples, config.data, draws)
    part = Part(samples, chosen)
    plan = make_plan(part, config.run, draws, 1 if accelerator is None else accelerator.num_processes)
    updates = _updates(config, part, plan)
    if config.distill is not None and isinstance(samples, CachedSamples):
        lessons = Lessons(part, plan, updates, held)
        samples = teach(config, config.distill, pipe, conditions, samples, lessons, negative, **processes)
        part = Part(samples, chosen)
        if until_cache:
            return None
    parts = _trained(config, pipe, modules)
    trained = next(iter(parts.values())) if len(parts) == 1 else TrainedTogether(parts)
    streaming = _stream(config, pipe, device)
    training = _training(config, pipe, conditions, parts, trained)
    if isinstance(fusion := parts.get(NAME), TrainedModule):
        # They run in hooks of the transformer, and only what is in this module is shared by processes.
        training.add_module(NAME, fusion.module)
    if streaming:
        # What was made beside weights that were not there yet.
        training.to(device)
    training.train(False)
    trained.train()
    if sharding is not None:
        shard(training, sharding, device)
    loader = SampleLoader(
        part, plan, conditions, draws, config.data.captions,
        0 if accelerator is None else accelerator.process_index, config.data.workers,
    )  # fmt: skip
    maker = make_batches(config, drawn_levels(config), pipe.transformer.config.guidance_embeds, templates)
    rows = data_hash(data)
    identity = run_identity(config, 1 if accelerator is None else accelerator.num_processes, rows)
    trainer = _trainer(
        config, training, trained, LoadedUpdates(loader, updates), maker, updates, accelerator, identity
    )
    trainer.resume()
    trainer.monitor = _monitor(config, trainer, accelerator)
    trainer.validate = _validation(config, training, trainer, pipe, samples, held, maker)
    epochs = config.run.epochs or plan.epoch_of(updates - 1) + 1
    lines = [str(data_report), describe_buckets(plan, epochs), describe_trained(trained), *streaming]
    report = "\n".join(lines if memory is None else [*lines, memory.describe()])
    compiled = _compile(config, training, trainer.monitor)
    return Run(config, trainer, training, trained, export_info(config, data, updates, rows), report, peaks, compiled)


def _lay_out(config: TrainingConfig, pipe: Any, device: torch.device) -> None:
    """Bring the transformer into the state that everything is trained on; if it is streamed, that comes later."""
    if config.model.storage is not None:
        # After the templates: an untrained ControlNet is a copy of the blocks as they are.
        store_frozen(pipe.transformer, config.model.storage)
    if config.model.resident is None:
        pipe.transformer.to(device)
    under = [each for each in config.train.base_loras or [] if not each.fused]
    for number, each in enumerate(under):
        lay_under(pipe.transformer, each.path, f"base_{number}", each.weight)


def _stream(config: TrainingConfig, pipe: Any, device: torch.device) -> list[str]:
    """Stream the transformer's blocks if asked, after adapters were made of its weights; return what to say of it."""
    resident = config.model.resident_bytes
    if resident is None:
        return []
    stream = stream_blocks(pipe.transformer, device, resident, config.model.stream_folder)
    return [describe_streaming(stream, resident)]


def _compile(config: TrainingConfig, training: FluxTraining, monitor: Monitor) -> CompiledBlocks | None:
    """Compile the transformer's blocks if asked, with all that runs in them in place."""
    if not config.model.compile:
        return None
    compiled = CompiledBlocks(training.transformer, config.model.compile_graphs)
    training.register_forward_pre_hook(compiled.check)
    training.on_close(compiled.close)
    monitor.gauges.append(compiled.numbers)
    return compiled


def _training(
    config: TrainingConfig, pipe: Any, conditions: Sequence[FluxCondition], parts: Mapping[str, Trained],
    trained: Trained,
) -> FluxTraining:  # fmt: skip
    drawn = drawn_levels(config)
    return FluxTraining(
        pipe.transformer,
        conditions,
        errors(config.loss.error.name, **config.loss.error.options),
        weighting(config.loss.weighting.name, drawn, **config.loss.weighting.options),
        base=_base_of(trained, any(source.preserved for source in config.data.sources)),
        text=TextEncoding(pipe, config.data.text_length) if set(config.train.loras) - {"transformer"} else None,
        strengths=_strengths(config, parts.get("lora")),
    )


def _strengths(config: TrainingConfig, lora: Trained | None) -> Callable[[torch.Tensor | None], None] | None:
    return Strengths(lora).set if config.train.slider is not None and isinstance(lora, TrainedLoRA) else None


def _processes(accelerator: Any) -> dict[str, Any]:
    if accelerator is None:
        return {}
    return {
        "process": accelerator.process_index,
        "processes": accelerator.num_processes,
        "wait": accelerator.wait_for_everyone,
    }


def _updates(config: TrainingConfig, part: Part, plan: BatchPlan) -> int:
    updates = config.run.updates or plan.updates_before(config.run.epochs or 0)
    if updates == 0:
        raise ValueError(
            f"With `run.epochs` at {config.run.epochs}, {len(part)} samples fill no update of {plan.total} samples. "
            f"Take more epochs, or lower `run.batch_size` or `run.accumulation`."
        )
    return updates


def _move(modules: Sequence[Any], device: torch.device) -> None:
    for module in modules:
        if isinstance(module, torch.nn.Module):
            module.to(device)


def _trained(config: TrainingConfig, pipe: Any, modules: Mapping[str, TrainedModule]) -> dict[str, Trained]:
    section, parts = config.train, dict[str, Trained](modules)
    if section.fusion is not None:
        parts[NAME] = add_fusion(pipe, section.fusion, config.seed)
    if section.weights is not None:
        parts["transformer"] = TrainedWeights(pipe.transformer, section.weights)
    if section.loras:
        models = {name: getattr(pipe, name) for name in section.loras}
        dtype = None if config.export.dtype is None else DTYPES[config.export.dtype]
        parts["lora"] = add_lora(
            models, section.loras, seed=config.seed, init_from=section.init_from, formats=config.export.formats,
            dtype=dtype,
        )  # fmt: skip
    for part in parts.values():
        if isinstance(part, TrainedModule):
            part.single_file = config.export.single_file
    return parts


def _base_of(trained: Trained, preserved: bool) -> Callable[[], Any] | None:
    parts = list(trained.parts.values()) if isinstance(trained, TrainedTogether) else [trained]
    for part in parts:
        if isinstance(part, TrainedLoRA):
            return part.switched_off
        # A second copy of the weights is only made where samples ask for the base's predictions.
        if isinstance(part, TrainedWeights) and preserved:
            return part.keep_base()
    return None


def _trainer(
    config: TrainingConfig, training: FluxTraining, trained: Trained, updates: LoadedUpdates, maker: BatchMaker,
    count: int, accelerator: Any, identity: Mapping[str, Any],
) -> Trainer:  # fmt: skip
    section, validation = config.run, config.validation
    rates = schedule(config.schedule.name, **{"warmup": min(50, count // 10), **config.schedule.options})
    every = math.gcd(validation.every, validation.images_every)
    average = None
    if section.average is not None:
        average = ExponentialMovingAverage(trained.named_parameters(), section.average.decay)
    return Trainer(
        training, trained, build_optimizer(trained.named_parameters(), config.optimizer), updates, maker,
        RunSettings(count, section.clip, section.save_every, every, section.stop_after_bad, section.fused_backward),
        CheckpointFolder(Path(config.output) / "checkpoints", section.keep), identity,
        lambda update: rates(update, count), average, accelerator=accelerator,
    )  # fmt: skip


def _monitor(config: TrainingConfig, trainer: Trainer, accelerator: Any) -> Monitor:
    folder, writers = Path(config.output) / "logs", list[Writer]()
    if trainer.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for name in config.run.logs:
            if name == "terminal":
                writers.append(TerminalWriter(sys.stdout, trainer.settings.updates))
            elif name == "jsonl":
                writers.append(JSONLinesWriter(folder / "log.jsonl", trainer.step))
            elif name == "csv":
                writers.append(CSVWriter(folder / "log.csv", trainer.step))
            elif name == "tensorboard":
                writers.append(TensorBoardWriter(folder / "tensorboard", trainer.step))
        if set(config.run.logs) - WRITERS:
            writers.append(TrackerWriter(accelerator))
    monitor = Monitor(writers, config.run.log_every)
    monitor.load(trainer.monitor.state())
    return monitor


def _validation(
    config: TrainingConfig, training: FluxTraining, trainer: Trainer, pipe: Any, samples: Any, held: Sequence[int],
    maker: BatchMaker,
) -> Callable[[int], Mapping[str, float]] | None:  # fmt: skip
    section = config.validation
    if not held or not (trainer.is_main or trainer.is_sharded) or not (section.every or section.images_every):
        return None
    kept = [samples.sample(index) for index in held]
    make: Any = ValidationLoss if config.distill is None else ValidationDistance
    loss = make(training, kept, maker, config.seed)
    images = ValidationImages(
        training, pipe.vae, pipe.scheduler, kept[: section.images], Path(config.output) / "images",
        [next((text for text in sample.prompts if text), "") for sample in kept[: section.images]], config.seed,
        section.num_inference_steps, section.guidance_scale,
    )  # fmt: skip

    def validate(step: int) -> Mapping[str, float]:
        if section.images_every and step % section.images_every == 0:
            images(step, None if trainer.average is None else trainer.average.applied)
        averaged = nullcontext() if trainer.average is None else trainer.average.applied()
        with averaged, without_gathered(training):
            return loss(step) if section.every and step % section.every == 0 else {}

    return validate


def describe_trained(trained: Trained) -> str:
    """Return how many parameters are trained, and what they take, in words.

    Args:
        trained (`Trained`): What is trained.

    Returns:
        `str`
    """
    parameters = trained.named_parameters().values()
    count = sum(parameter.numel() for parameter in parameters)
    size = sum(parameter.nbytes for parameter in parameters)
    return (
        f"{count:,} trained numbers in {len(parameters)} tensors, {size / 2**20:.1f} MiB, and as much for gradients."
    )
