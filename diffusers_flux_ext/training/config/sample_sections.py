"""The sections that say what a sample is: where it comes from, and the conditions that it is trained with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..data import Captions, Columns, FreeBuckets, ImageOptions, ListedBuckets, ReferenceSizes, Transform
from ..trained import trainable_modules


PACKAGES = ("transformers", "diffusers", "diffusers_flux_ext")
"""Packages whose classes may be named in a configuration."""


class Section(BaseModel):
    """A part of the configuration; unknown entries are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SizesSection(Section):
    """Which sizes images are brought to; one of the three rules.

    Args:
        buckets (`FreeBuckets`, *optional*): Sizes of given areas and free aspect ratios.
        listed (`ListedBuckets`, *optional*): The nearest size of a list.
        reference (`ReferenceSizes`, *optional*): Each image's own size, as DiffSynth-Studio does.
    """

    buckets: FreeBuckets | None = None
    listed: ListedBuckets | None = None
    reference: ReferenceSizes | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> SizesSection:
        if len([each for each in (self.buckets, self.listed, self.reference) if each is not None]) != 1:
            raise ValueError("got several rules or none; expected one of `buckets`, `listed` and `reference`")
        return self

    @property
    def rule(self) -> Any:
        """The rule."""
        return self.buckets or self.listed or self.reference


class SourceSection(Section):
    """Where samples come from.

    Args:
        path (`str` or a list): A table, a folder, tar or parquet files, or a saved dataset.
        kind (`str`): What it is: `"table"` (csv, json, jsonl), `"folder"`, `"webdataset"`, `"parquet"` or `"dataset"`.
        base (`str`, *optional*): Folder of the files that a table names.
        file_columns (`list[str]`): Columns of images.
        beside (`dict[str, str]`): Of a folder: further file columns by folders of the same names.
        split (`str`, *optional*): Of a dataset: which part.
        allow_outside (`bool`): Whether paths may lead out of the folder.
        allow_urls (`bool`): Whether web addresses are fetched.
        repeats (`int`): How often an epoch visits each sample.
        weight (`float`): Weight of its samples in the loss.
        prefix (`str`): Put before each caption.
        trigger (`str`, *optional*): Replaces `[trigger]` in all texts; put before captions that have neither.
        sizes (`SizesSection`, *optional*): Its own rule of sizes.
        preserved (`bool`): Whether the base's own prediction is the target, as regularisation.
        allow_flip (`bool`): Whether its images may be mirrored.
    """

    path: str | list[str]
    kind: Literal["table", "folder", "webdataset", "parquet", "dataset"] = "table"
    base: str | None = None
    file_columns: list[str] = ["image"]
    beside: dict[str, str] = {}
    split: str | None = None
    allow_outside: bool = False
    allow_urls: bool = False
    repeats: int = Field(default=1, ge=1)
    weight: float = Field(default=1.0, ge=0)
    prefix: str = ""
    trigger: str | None = None
    sizes: SizesSection | None = None
    preserved: bool = False
    allow_flip: bool = True


class DataSection(Section):
    """The samples.

    Args:
        sources (`list[SourceSection]`): Where they come from.
        sizes (`SizesSection`): Which sizes images are brought to.
        captions (`Captions`): How captions are read and varied.
        transform (`Transform`): How images are brought to their size, and what is varied.
        columns (`Columns`): What the file columns are for.
        images (`ImageOptions`): How files are read.
        decode (`bool`):
            Whether the check before the start decodes every image instead of reading its header, which finds
            truncated ones, too.
        variants (`int`): How many variants of a sample a varying transform draws.
        text_length (`int`): T5 tokens of a caption.
        posterior (`bool`): Whether latents are sampled from the VAE's posterior instead of being its mean.
        cache (`str`, *optional*): Folder of the cache; without one, samples are encoded as they come.
        workers (`int`): Processes that load samples.
        on_bad_sample (`str`): `"stop"` or `"skip"`.
        bad_limit (`float`): Share of all samples up to which they are skipped.
        held_out (`int`): Samples that are left out of training, for validation.
    """

    sources: list[SourceSection] = []
    sizes: SizesSection = SizesSection(buckets=FreeBuckets())
    captions: Captions = Captions()
    transform: Transform = Transform()
    columns: Columns = Columns()
    images: ImageOptions = ImageOptions()
    decode: bool = False
    variants: int = Field(default=1, ge=1)
    text_length: int = Field(default=512, ge=1, le=512)
    posterior: bool = False
    cache: str | None = None
    workers: int = Field(default=0, ge=0)
    on_bad_sample: Literal["stop", "skip"] = "stop"
    bad_limit: float = Field(default=0.1, ge=0, le=1)
    held_out: int = Field(default=0, ge=0)


class ModuleSection(Section):
    """A module of a condition.

    Args:
        kind (`str`):
            What it is, for example `"controlnet"`; see `docs/training_targets.md`. For what only encodes, such as a
            vision model, a class of transformers: `"transformers:SiglipVisionModel"`.
        path (`str`, *optional*): A folder or a published file; without one, an untrained module is made.
        sizes (`dict`): Sizes of an untrained one.
        train (`bool`): Whether it is trained.
        patterns (`list[str]`, *optional*): Which of its parameters are trained; all by default.
    """

    kind: str
    path: str | None = None
    sizes: dict[str, Any] = {}
    train: bool = False
    patterns: list[str] | None = None

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        package = value.partition(":")[0]
        if value not in trainable_modules() and not (":" in value and package in PACKAGES):
            raise ValueError(
                f"got {value!r}; expected one of {sorted(trainable_modules())}, or a class such as "
                f"'transformers:SiglipVisionModel'"
            )
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> ModuleSection:
        if self.path is not None and self.sizes:
            raise ValueError("got `path` and `sizes`; sizes are those of the file")
        if ":" in self.kind and (self.path is None or self.train):
            raise ValueError(f"got the kind {self.kind!r}, which needs a `path` and is not trained")
        if self.path is None and not self.train:
            raise ValueError(
                "there is no `path`, and an untrained module that is not trained (`train: true`) is useless"
            )
        return self


class ConditionSection(Section):
    """A condition of every sample.

    Args:
        type (`str`): Its class, for example `"EntityRegions"`.
        inputs (`dict[str, str]`): Columns by field: `{"prompts": "eligen_entity_prompts"}`.
        options (`dict`): Other fields.
        modules (`dict[str, ModuleSection]`): Modules by field.
        dropout (`float`): Share of samples without it.
        allow_flip (`bool`): Whether samples with it may be mirrored; `false` for one that tells left from right.
    """

    type: str
    inputs: dict[str, str] = {}
    options: dict[str, Any] = {}
    modules: dict[str, ModuleSection] = {}
    dropout: float = Field(default=0.0, ge=0, lt=1)
    allow_flip: bool = True

    @property
    def is_trained(self) -> bool:
        """Whether any of its modules is trained."""
        return any(module.train for module in self.modules.values())
