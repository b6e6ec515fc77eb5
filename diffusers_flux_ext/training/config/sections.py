"""The sections of a configuration. Everything is checked when one is made, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..losses import errors, levels, weighting
from ..optim import OptimizerSettings, schedule
from .model_section import ModelSection
from .sample_sections import ConditionSection, DataSection, Section
from .task_sections import DifferentialSection, DistillSection
from .train_section import TrainSection


class Named(BaseModel):
    """A name, and the options that belong to it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options."""
        return dict(self.model_extra or {})


class LossSection(Section):
    """The loss.

    Args:
        levels (`Named`): How noise levels are drawn.
        stratified (`bool`): Whether they are spread evenly over the samples of an update.
        weighting (`Named`): Weight of the loss by noise level.
        error (`Named`): `"mse"` or `"huber"`.
    """

    levels: Named = Named(name="logit_normal", shift="resolution")  # type: ignore[call-arg]
    stratified: bool = True
    weighting: Named = Named(name="none")
    error: Named = Named(name="mse")

    @model_validator(mode="after")
    def _known(self) -> LossSection:
        drawn = levels(self.levels.name, **self.levels.options)
        weighting(self.weighting.name, drawn, **self.weighting.options)
        errors(self.error.name, **self.error.options)
        return self


class AverageSection(Section):
    """A running average of what is trained.

    Args:
        decay (`float`): How much of it is kept at each update.
    """

    decay: float = Field(default=0.999, ge=0, lt=1)


class RunSection(Section):
    """How long a run is.

    Args:
        updates (`int`, *optional*): Updates of the weights; or `epochs`.
        epochs (`int`, *optional*): Visits of all samples.
        batch_size (`int`): Samples of a batch, of one shape.
        accumulation (`int`): Batches of each process in an update.
        clip (`float`, *optional*): Largest norm of the gradient.
        average (`AverageSection`, *optional*): A running average.
        save_every (`int`): Updates between checkpoints.
        keep (`int`): How many checkpoints are kept.
        log_every (`int`): Updates between reports.
        logs (`list[str]`):
            Where reports go: `"terminal"`, `"jsonl"`, `"csv"`, `"tensorboard"`, or one of accelerate's trackers.
        stop_after_bad (`int`): Updates in a row that may be skipped because numbers are not finite.
        fused_backward (`bool`):
            Whether parameters are stepped within the backward pass, for full fine-tuning with less memory; without
            clipping and accumulation.
    """

    updates: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=1, ge=1)
    accumulation: int = Field(default=1, ge=1)
    clip: float | None = Field(default=1.0, gt=0)
    average: AverageSection | None = None
    save_every: int = Field(default=250, ge=1)
    keep: int = Field(default=4, ge=1)
    log_every: int = Field(default=10, ge=1)
    logs: list[str] = ["terminal", "jsonl", "csv"]
    stop_after_bad: int = Field(default=10, ge=0)
    fused_backward: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> RunSection:
        if self.fused_backward and (self.clip is not None or self.accumulation > 1):
            raise ValueError(
                f"got `fused_backward` with `clip` {self.clip} and `accumulation` {self.accumulation}; it frees each "
                f"gradient at once, so set `clip: null` and `accumulation: 1`"
            )
        if (self.updates is None) == (self.epochs is None):
            raise ValueError("got both or neither of `updates` and `epochs`; expected one of them")
        return self


class ValidationSection(Section):
    """Validation on the held-out samples.

    Args:
        every (`int`): Updates between validation losses; 0 for none.
        images_every (`int`): Updates between contact sheets; 0 for none.
        images (`int`): How many images.
        num_inference_steps (`int`): Steps of an image.
        guidance_scale (`float`): Its embedded guidance.
    """

    every: int = Field(default=0, ge=0)
    images_every: int = Field(default=0, ge=0)
    images: int = Field(default=4, ge=1)
    num_inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = 3.5


class ExportSection(Section):
    """What is written at the end.

    Args:
        formats (`list[str]`, *optional*):
            Layouts of LoRA files: `"diffusers"` by default, and `"onetrainer"` for LoKr, which the others turn into a
            LoRA.
        dtype (`str`, *optional*): Data type of LoRA files; float32 by default.
        single_file (`bool`): Whether modules are written in the layout of published files, too.
        average (`bool`): Whether the running average is written, if there is one.
        license (`str`, *optional*): Noted in the files.
        title (`str`, *optional*): Noted in the files.
    """

    formats: list[str] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    single_file: bool = False
    average: bool = True
    license: str | None = None
    title: str | None = None


class TrainingConfig(Section):
    """The configuration of a training run.

    Args:
        output (`str`): Folder of checkpoints, logs, validation images and the result.
        seed (`int`): Seed of everything that is drawn.
        model (`ModelSection`): The model to start from.
        data (`DataSection`): The samples.
        conditions (`list[ConditionSection]`): Conditions of every sample.
        train (`TrainSection`): What is trained.
        distill (`DistillSection`, *optional*): Distillation, in place of learning the samples' images.
        differential (`DifferentialSection`, *optional*):
            A LoRA of what two sets of images differ in, which takes the place of `data.sources`.
        loss (`LossSection`): The loss.
        optimizer (`OptimizerSettings`): The optimizer.
        schedule (`Named`):
            The schedule of the learning rate. Its `warmup` is a tenth of the updates, at most 50, by default.
        run (`RunSection`): How long the run is.
        validation (`ValidationSection`): Validation.
        export (`ExportSection`): What is written at the end.
    """

    output: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    model: ModelSection
    data: DataSection
    conditions: list[ConditionSection] = []
    train: TrainSection = TrainSection()
    distill: DistillSection | None = None
    differential: DifferentialSection | None = None
    loss: LossSection = LossSection()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Named = Named(name="constant")
    run: RunSection
    validation: ValidationSection = ValidationSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        schedule(self.schedule.name, **self.schedule.options)
        modules = any(condition.is_trained for condition in self.conditions)
        given = self.train.loras or self.train.weights is not None or self.train.fusion is not None
        if not given and not modules:
            raise ValueError(
                "nothing is trained; give `train.lora`, `train.weights`, `train.fusion`, or a condition's module with "
                "`train: true`"
            )
        whole = self.train.weights is not None or modules
        if whole and self.model.dtype != "float32" and self.optimizer.rounding is None:
            raise ValueError(
                f"weights are trained in {self.model.dtype}, where small steps are rounded away; set "
                f"`optimizer.rounding` to `masters` (float32 copies), `kahan` or `stochastic`"
            )
        if self.train.weights is not None and self.model.storage is not None:
            raise ValueError(
                f"got `train.weights` with `model.storage` {self.model.storage!r}, whose steps are too coarse to be "
                f"trained; leave `model.storage` out, or train a LoRA"
            )
        self._check_streaming()
        if (self.validation.every or self.validation.images_every) and not self.data.held_out:
            raise ValueError("validation needs `data.held_out` samples")
        if self.data.cache is not None and set(self.train.loras) - {"transformer"}:
            raise ValueError("text encoders cannot be trained on cached captions; leave `data.cache` out")
        if self.train.memory is not None and self.model.offload_activations:
            raise ValueError("got `train.memory` with `model.offload_activations`, which it chooses; give one of them")
        if self.train.memory is not None and self.model.compile:
            raise ValueError(
                "got `train.memory` with `model.compile`, but it may choose streaming or NF4, which are not compiled; "
                "set `model.storage` and `model.gradient_checkpointing` by hand"
            )
        if self.train.memory is not None and (self.train.loras.keys() != {"transformer"} or self.conditions):
            raise ValueError(
                "got `train.memory`, which plans a LoRA of the transformer without conditions; choose "
                "`model.storage`, `model.gradient_checkpointing`, `run.batch_size` and `data.cache` by hand"
            )
        if self.distill is not None:
            self._check_distill()
        if self.differential is not None:
            self._check_differential()
        elif not self.data.sources:
            raise ValueError("`data.sources` is empty; give at least one source of samples")
        return self

    def _check_streaming(self) -> None:
        if self.model.resident is None:
            return
        if self.train.weights is not None:
            raise ValueError(
                "got `train.weights` with `model.resident`, but blocks that are streamed must be frozen; leave "
                "`model.resident` out, or train a LoRA"
            )
        if self.distill is not None:
            raise ValueError(
                "got `distill` with `model.resident`, but the teacher draws with all blocks on the device; leave "
                "`model.resident` out"
            )
        if self.train.memory is not None:
            raise ValueError("got `train.memory` with `model.resident`, which it chooses; give one of them")

    def _check_differential(self) -> None:
        if self.data.sources:
            raise ValueError("got `differential` with `data.sources`; its pairs have sources of their own")
        if not self.train.is_plain or any(condition.is_trained for condition in self.conditions):
            raise ValueError(
                "got `differential`, which trains LoRAs of the transformer and nothing else; give `train.lora` of the "
                "kind 'lora'"
            )
        if self.distill is not None or self.train.slider is not None:
            raise ValueError("got `differential` with `distill` or `train.slider`; give one of them")

    def _check_distill(self) -> None:
        if self.data.cache is None:
            raise ValueError("`distill` keeps what the teacher draws beside the samples; set `data.cache`")
        usual = LossSection()
        idle = {
            "loss.levels": self.loss.levels != usual.levels,
            "loss.weighting": self.loss.weighting != usual.weighting,
            "data.posterior": self.data.posterior,
            "train.slider": self.train.slider is not None,
            "preserved sources": any(source.preserved for source in self.data.sources),
            "dropout of conditions": any(condition.dropout for condition in self.conditions),
        }
        if found := [name for name, given in idle.items() if given]:
            raise ValueError(
                f"got `distill` with {', '.join(found)}, which are for learning images; the noise levels are those of "
                f"the student's steps, and its target is the teacher's, so leave them out"
            )

    def identity(self) -> dict[str, Any]:
        """Return what determines the trained weights; a run resumes under the same identity only.

        Returns:
            `dict[str, Any]`: what JSON can hold.
        """
        whole = self.model_dump(mode="json")
        for name in ("output", "export"):
            whole.pop(name)
        for name in (
            "device", "gradient_checkpointing", "resident", "stream_folder", "offload_activations", "compile",
            "compile_graphs",
        ):  # fmt: skip
            whole["model"].pop(name)
        for name in ("workers", "cache", "decode"):
            whole["data"].pop(name)
        for name in ("save_every", "keep", "log_every", "logs"):
            whole["run"].pop(name)
        # What a budget has chosen stands in other entries.
        whole["train"].pop("memory")
        whole.pop("validation")
        return _plain(whole)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
