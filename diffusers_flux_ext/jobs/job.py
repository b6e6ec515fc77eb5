"""The job: one description of a call, whose fields are those of the registered methods."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from types import GenericAlias
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, create_model
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict

from ..methods import METHODS
from ..methods.classes import condition_class, condition_methods, pipeline_class, pipeline_methods
from ..methods.method import resolve
from .arguments import Argument, call_arguments, component_abouts, component_classes, condition_arguments
from .canonical import canonical_digest
from .descriptions import described_arguments, summary
from .files import JobFiles
from .kinds import module_value
from .sections import LoRASection, MemorySection, ModelSection, OutputSection
from .values import Frozen, SeedValue


VERSION = 1
DEFAULT_PIPELINE = "FluxConditionedPipeline"


class ConditionValues(Frozen):
    """A condition of a job; its fields are those of the condition's class."""

    type: str


class CallValues(Frozen):
    """The arguments of a pipeline's call."""

    seed: SeedValue | tuple[SeedValue, ...] = Field(
        default=SeedValue(0),
        description="Seed of the noise, which is drawn on the CPU: one for all images, or one per image.",
    )


class Job(Frozen):
    """One description of a call, made by [`read_job`].

    Args:
        version (`int`, defaults to 1): Version of the description.
        model (`ModelSection`): The model.
        pipeline (`str`, defaults to `"FluxConditionedPipeline"`): The pipeline's class.
        components (`dict`): Modules of the pipeline in place of the model's own or beside them, by component; `null`
            leaves one out.
        loras (`list[LoRASection]`): LoRAs that are loaded into the model.
        additions (`dict`): What methods add to the loaded pipeline, by name.
        conditions (`list[ConditionValues]`): What to condition on, each with its `type`.
        call (`CallValues`): The arguments of the call.
        memory (`MemorySection`): Where the weights are, and what is computed again.
        output (`OutputSection`): How images are written.
    """

    version: Literal[1] = 1
    model: ModelSection
    pipeline: str = DEFAULT_PIPELINE
    components: Mapping[str, Any] = {}
    loras: tuple[LoRASection, ...] = ()
    additions: Mapping[str, Any] = {}
    conditions: tuple[Any, ...] = ()
    call: Any = None
    memory: MemorySection = MemorySection()
    output: OutputSection = OutputSection()

    def to_dict(self) -> dict[str, Any]:
        """Return the job as what JSON and YAML can hold, without entries that are defaults.

        Returns:
            `dict[str, Any]`: which [`read_job`] reads back to an equal job.
        """
        return {"version": VERSION, **self.model_dump(mode="json", exclude_defaults=True)}

    def digest(self, files: JobFiles | None = None) -> str:
        """Return the SHA-256 of the job's canonical form, in which inputs stand by their content.

        Args:
            files ([`JobFiles`], *optional*): The files of the job; relative to the working directory by default.

        Returns:
            `str`: hexadecimal digits.

        Raises:
            JobError: if an input is missing.
        """
        return canonical_digest(self, files or JobFiles())


def job_model(pipeline: str = DEFAULT_PIPELINE) -> type[Job]:
    """Return the model that validates jobs of a pipeline, with the conditions that are registered now.

    Args:
        pipeline (`str`): A registered pipeline.

    Returns:
        `type[Job]`
    """
    return _job_model(pipeline, tuple(map(condition_class, condition_methods())), tuple(METHODS))


@functools.cache
def _job_model(pipeline: str, conditions: tuple[Any, ...], methods: tuple[str, ...]) -> type[Job]:
    # The names of methods are a part of the key, since methods may be registered later.
    models = functools.reduce(operator.or_, map(condition_model, conditions))
    condition: Any = Annotated[models, Field(discriminator="type")]
    call = call_model(pipeline)
    about = described_arguments(Job)
    changed: dict[str, Any] = {
        "pipeline": (_only(pipeline), DEFAULT_PIPELINE),
        "components": (components_type(pipeline), {}),
        "additions": (_additions_type(), {}),
        "conditions": (GenericAlias(tuple, (condition, ...)), ()),
        "call": (call, call()),
    }
    made: dict[str, Any] = {
        name: (kind, Field(default=default, description=about[name])) for name, (kind, default) in changed.items()
    }
    return create_model("Job", __base__=Job, __module__=__name__, __doc__=summary(Job), **made)


@functools.cache
def condition_model(condition: Any) -> type[ConditionValues]:
    """Return the model of a condition.

    Args:
        condition (`type`): Its class.

    Returns:
        `type[ConditionValues]`
    """
    name = condition.__name__
    return create_model(
        name,
        __base__=ConditionValues,
        __module__=__name__,
        __doc__=summary(condition),
        type=(_only(name), Field(description="What it is.")),
        **_fields(condition_arguments(condition)),
    )


def call_model(pipeline: str) -> type[CallValues]:
    """Return the model of the arguments of a pipeline's call.

    Args:
        pipeline (`str`): A registered pipeline.

    Returns:
        `type[CallValues]`
    """
    method = pipeline_methods()[pipeline]
    own = tuple(condition_class(name) for name in method.exports.get("condition", ())) if method else ()
    cls: Any = pipeline_class(pipeline)
    return _call_model(cls, own)


@functools.cache
def _call_model(pipeline: Any, conditions: tuple[Any, ...]) -> type[CallValues]:
    made = _fields(call_arguments(pipeline, conditions))
    return create_model(
        f"{pipeline.__name__}Call", __base__=CallValues, __module__=__name__, __doc__=summary(pipeline), **made
    )


def _fields(arguments: Sequence[Argument]) -> dict[str, Any]:
    made = {}
    for argument in arguments:
        if argument.is_expressible:
            default = {} if argument.default is MISSING else {"default": _in_json(argument)}
            made[argument.name] = (argument.kind, Field(description=argument.about or None, **default))
    return made


def _in_json(argument: Argument) -> Any:
    """Return a default as a value of a job; `None` for an object, which is left to the method."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(argument.kind, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(argument.default)
    except (ValueError, TypeError, PydanticUserError, PydanticSerializationError):
        return None


def components_type(pipeline: str) -> Any:
    """Return the type of a pipeline's components in a job.

    Args:
        pipeline (`str`): A registered pipeline.

    Returns:
        A `TypedDict`.
    """
    cls: Any = pipeline_class(pipeline)
    about = component_abouts(cls)
    return _mapping(
        f"{pipeline}Components",
        {
            name: Annotated[module_value(classes) | None, Field(description=about.get(name))]
            for name, classes in component_classes(cls).items()
        },
    )


def additions() -> dict[str, tuple[Any, Any]]:
    """Return what methods add to a loaded pipeline: the method and the addition, by name."""
    return {name: (method, added) for method in METHODS.values() for name, added in method.additions.items()}


def _additions_type() -> Any:
    entries = {}
    for name, (method, added) in additions().items():
        kind = resolve(method.package, added.module)
        entries[name] = Annotated[module_value((kind,)), Field(description=summary(kind))]
    return _mapping("Additions", entries)


def _only(name: str) -> Any:
    return Literal[name]


def _mapping(name: str, entries: Mapping[str, Any]) -> Any:
    kind = TypedDict(name, {key: NotRequired[each] for key, each in entries.items()})  # type: ignore[misc]
    kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    kind.__module__ = __name__
    return kind
