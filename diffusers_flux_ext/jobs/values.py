"""The kinds of values of a job that stand for Python objects: images, regions, tensors, modules, LoRAs and seeds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    RootModel,
    StrictInt,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema


KIND = "x-kind"
"""The entry of the JSON schema that says what a value stands for."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(strict=True, ge=-1, le=2)]
Point = tuple[Fraction, Fraction]


class Frozen(BaseModel):
    """A part of a job; unknown entries are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class StoredFile(Frozen):
    """A file by its name, with the SHA-256 of its content, so that a changed file is noticed.

    Args:
        file (`str`): Name of the file, beside the job.
        sha256 (`str`): SHA-256 of its content, as hexadecimal digits.
    """

    file: str = Field(min_length=1)
    sha256: Digest


class Stroke(Frozen):
    """A line that was painted.

    Args:
        points (`list[tuple[float, float]]`): `(x, y)` in fractions of the canvas.
        width (`float`, defaults to 0.05): Its width, in fractions of the canvas's shorter side.
        erase (`bool`, defaults to `False`): Whether it takes away what was painted before it.
    """

    points: tuple[Point, ...] = Field(min_length=1)
    width: float = Field(default=0.05, gt=0, le=2, strict=True)
    erase: bool = Field(default=False, strict=True)


class Strokes(Frozen):
    """A region that was painted.

    Args:
        strokes (`list[Stroke]`): Its lines, in the order in which they were painted.
    """

    strokes: tuple[Stroke, ...] = Field(min_length=1)


class Polygon(Frozen):
    """A region inside of straight lines.

    Args:
        polygon (`list[tuple[float, float]]`): Its corners `(x, y)`, in fractions of the canvas.
    """

    polygon: tuple[Point, ...] = Field(min_length=3)


FileText = Annotated[str, Field(min_length=1)]
Side = StrictInt | Number
Box = tuple[Side, Side, Side, Side]


ContentT = TypeVar("ContentT")


class _Value(RootModel[ContentT], Generic[ContentT]):
    """A value that stands for an object."""

    model_config = ConfigDict(frozen=True)
    kind: ClassVar[str] = ""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        return {**schema, KIND: cls.kind}


def _form(value: Any) -> str:
    """Return which form a file or a region is given in."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "box"
    names = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, BaseModel) else ()
    return next((form for form, name in _FORMS.items() if name in names), "text")


_FORMS = {"painted": "strokes", "outlined": "polygon", "stored": "file"}
File = Annotated[
    Annotated[FileText, Tag("text")] | Annotated[StoredFile, Tag("stored")],
    Discriminator(_form),
]
Region = Annotated[
    Annotated[Box, Tag("box")]
    | Annotated[FileText, Tag("text")]
    | Annotated[StoredFile, Tag("stored")]
    | Annotated[Strokes, Tag("painted")]
    | Annotated[Polygon, Tag("outlined")],
    Discriminator(_form),
]


class ImageValue(_Value[File]):
    """An image: a file beside the job, a `data:` URL, or an upload, `upload:` and its SHA-256.

    Metadata of result images give its name and its SHA-256 instead.
    """

    kind = "image"


class RegionValue(_Value[Region]):
    """A region: a box in pixels or fractions, an image that is white inside, strokes, or a polygon.

    A box is `[left, top, right, bottom]`. Images are given like all images of a job.
    """

    kind = "region"


class TensorValue(_Value[File]):
    """A tensor: a `.safetensors` file of one tensor or a `.npy` file, given like an image."""

    kind = "tensor"


class SeedValue(_Value[Annotated[int, Field(strict=True, ge=0, lt=2**63)]]):
    """A seed of noise, drawn on the CPU."""

    kind = "seed"


class Referenced(Frozen):
    """Something that is loaded from a path; the path alone may stand for it."""

    kind: ClassVar[str]
    path: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        text = {"type": "string", "minLength": 1}
        extra = {"x-classes": names} if (names := cls.class_names()) else {}
        about: dict[str, Any] = {key: each for key, each in schema.items() if key in ("title", "description")}
        return {**about, "anyOf": [text, schema], KIND: cls.kind, **extra}

    @classmethod
    def class_names(cls) -> list[str]:
        """Return the classes that it may be loaded as."""
        return []


class ModuleValue(Referenced):
    """A model or a processor.

    Args:
        path (`str`):
            A folder, a repository or a published file; or `tiny`, the one that is shipped for the tiny model.
        subfolder (`str`, *optional*): A folder inside of it.
        weight_name (`str`, *optional*): A file inside of it.
        revision (`str`, *optional*): Revision of a repository.
    """

    kind = "module"
    classes: ClassVar[tuple[type, ...]] = ()
    subfolder: str | None = None
    weight_name: str | None = None
    revision: str | None = None

    @classmethod
    def class_names(cls) -> list[str]:
        """Return the classes that it may be loaded as."""
        return [each.__name__ for each in cls.classes]


class LoRAValue(Referenced):
    """A LoRA in any layout that this package reads.

    Args:
        path (`str`): A file, a folder or a repository; or `tiny`, those that are shipped for the tiny model.
        weight_name (`str`, *optional*): A file inside of it.
    """

    kind = "lora"
    weight_name: str | None = None


Leaf = ImageValue | RegionValue | TensorValue | SeedValue | ModuleValue | LoRAValue
"""What is replaced by an object when a job is built."""
