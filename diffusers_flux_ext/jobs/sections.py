"""The parts of a job that are the same for all methods."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, StrictInt

from .values import Frozen, LoRAValue, Number, Referenced


class ModelSection(Referenced):
    """The model.

    Args:
        path (`str`): A repository, a folder in diffusers' layout, a single file, or `tiny`, the embedded model.
        revision (`str`, *optional*): Revision of a repository.
        base (`str`, *optional*):
            Of a single file: a folder or repository that gives what the file lacks, such as tokenizers.
        dtype (`str`, *optional*): Data type of the model and of all modules; the runner's by default.
    """

    kind = "model"
    revision: str | None = None
    base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


class LoRASection(LoRAValue):
    """A LoRA that is loaded into the model.

    Args:
        path (`str`): A file, a folder or a repository; or `tiny`, those that are shipped for the tiny model.
        weight_name (`str`, *optional*): A file inside of it.
        weight (`float`, defaults to 1.0): Its weight.
    """

    weight: Number = 1.0


class CacheSection(Frozen):
    """A cache of steps that have hardly changed; its options are entries beside its name.

    Args:
        name (`str`):
            `tea`, or one of diffusers: `first_block`, `mag`, `taylor_seer`, `pyramid_attention` or `faster`.
    """

    model_config = ConfigDict(extra="allow")
    name: Literal["tea", "first_block", "mag", "taylor_seer", "pyramid_attention", "faster"]

    @property
    def options(self) -> dict[str, Any]:
        """The options."""
        return dict(self.model_extra or {})


class MemorySection(Frozen):
    """Where the weights are, and what is computed again.

    Args:
        vram_gib (`float`, *optional*): GiB of the card that a call may take.
        offload (`str`, defaults to `"none"`): Without a budget: `none`, `model` or `sequential` (by layers).
        cache (`CacheSection`, *optional*): A cache.
    """

    vram_gib: float | None = Field(default=None, gt=0, allow_inf_nan=False, strict=True)
    offload: Literal["none", "model", "sequential"] = "none"
    cache: CacheSection | None = None


class OutputSection(Frozen):
    """How images are written.

    Args:
        format (`str`, defaults to `"png"`): `png`, `jpeg` or `webp`.
        quality (`int`, *optional*): Of JPEG and WebP, from 1 to 100; 95 by default.
    """

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: StrictInt | None = Field(default=None, ge=1, le=100)
