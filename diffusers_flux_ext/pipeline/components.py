"""Shared parts of named pipelines: components from other pipelines, and the signature of the call."""

import functools
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from diffusers import DiffusionPipeline

from .._compat import component_names
from .call_checks import check_arguments


PipelineT = TypeVar("PipelineT", bound=DiffusionPipeline)
CallT = TypeVar("CallT", bound=Callable[..., Any])


def extends_call(base: type, **defaults: Any) -> Callable[[CallT], CallT]:
    """Show the arguments of `base.__call__` in the signature of a `__call__` that passes them on.

    diffusers and its users read the accepted arguments from the signature, which `*args` and `**kwargs` hide.

    Args:
        base (`type`): The pipeline class whose call is extended; the method's own keyword arguments come last.
        defaults: Other defaults of arguments of `base.__call__`, which the decorated method has to apply.

    Returns:
        `Callable`: a decorator, which must be the outermost one.
    """

    def decorate(call: CallT) -> CallT:
        shown = dict(inspect.signature(base.__call__).parameters)
        shown |= {name: shown[name].replace(default=value) for name, value in defaults.items()}
        own = inspect.signature(call).parameters.values()
        added = {part.name: part for part in own if part.kind is part.KEYWORD_ONLY and part.name not in shown}
        returns = inspect.signature(call).return_annotation
        signature = inspect.Signature([*shown.values(), *added.values()], return_annotation=returns)
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def extends_init(base: type) -> Callable[[CallT], CallT]:
    """Show the components of `base` in the signature of an `__init__` that passes them on as `*args` and `**kwargs`.

    diffusers reads a pipeline's components, and the classes that fit them, from this signature and its annotations.

    Args:
        base (`type`): The pipeline class that is extended; components of the method are keyword arguments.

    Returns:
        `Callable`: a decorator.

    Raises:
        TypeError: if a component has no annotation.
    """

    def decorate(init: CallT) -> CallT:
        shown = list(inspect.signature(base.__init__).parameters.values())  # type: ignore[misc]
        own = [part for part in inspect.signature(init).parameters.values() if part.kind is part.KEYWORD_ONLY]
        added = [part.replace(kind=part.POSITIONAL_OR_KEYWORD) for part in own]
        init.__signature__ = inspect.Signature([*shown, *added], return_annotation=None)  # type: ignore[attr-defined]
        names = {part.name for part in own}
        bare = sorted(names - init.__annotations__.keys())
        if bare:
            raise TypeError(
                f"The components {bare} of `{init.__qualname__}` have no annotation, from which diffusers learns what "
                f"fits. Annotate them with their classes."
            )
        inherited = typing.get_type_hints(base.__init__)  # type: ignore[misc]
        init.__annotations__ = inherited | {name: init.__annotations__[name] for name in names}
        return init

    return decorate


def renames_errors(owner: type | str, **arguments: str) -> Callable[[CallT], CallT]:
    """Let errors about fields of a condition name the arguments of a `__call__` that makes the condition.

    Args:
        owner (`type` or `str`):
            The condition's class, whose errors say "`field` of ClassName", or the end of such messages.
        arguments (`str`): The argument of the call by field, where the names differ.

    Returns:
        `Callable`: a decorator.
    """
    # Modules are components of the pipeline, not arguments, so they keep the condition's name.
    pattern = re.compile(rf"`(\w+)([^`]*)` of {owner if isinstance(owner, str) else owner.__name__}\b")

    def decorate(call: CallT) -> CallT:
        names = {name: name for name in inspect.signature(call).parameters} | arguments

        def rename(found: re.Match[str]) -> str:
            return f"`{names[found[1]]}{found[2]}`" if found[1] in names else found[0]

        @functools.wraps(call)
        def renamed(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except (TypeError, ValueError) as error:
                message = pattern.sub(rename, str(error))
                if len(error.args) == 1:
                    error.args = (message,)
                raise

        return renamed  # type: ignore[return-value]

    return decorate


def named_arguments(base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the given arguments of a call of `base` by name, checked one by one.

    Args:
        base (`type`): The pipeline class.
        args (`tuple`): Positional arguments without `self`.
        kwargs (`dict[str, Any]`): Arguments by name.

    Returns:
        `dict[str, Any]`

    Raises:
        TypeError: if there is no such argument, or one has a wrong type.
        ValueError: if one is out of range.
    """
    bound = inspect.signature(base.__call__).bind_partial(None, *args, **kwargs)
    given = {name: value for name, value in bound.arguments.items() if name != "self"}
    check_arguments(given)
    return given


def share_components(pipeline_class: type[PipelineT], pipeline: DiffusionPipeline, **overrides: Any) -> PipelineT:
    """Make a pipeline from another one's components; every module keeps its data type, device and hooks.

    Args:
        pipeline_class (`type`): The class to make, ours or diffusers'.
        pipeline (`DiffusionPipeline`): Where the components come from.
        overrides: Components and constructor arguments that replace the source's or that it lacks.

    Returns:
        `DiffusionPipeline`: an instance of `pipeline_class`.

    Raises:
        ValueError: if a component without a default is missing, or an override is not an argument of the constructor.
    """
    components, options = component_names(pipeline_class)
    unknown = sorted(overrides.keys() - components - options)
    if unknown:
        raise ValueError(
            f"{pipeline_class.__name__} takes no {unknown}; its components are {sorted(components)} and its other "
            f"arguments {sorted(options)}."
        )
    config = dict(pipeline.config)
    given = {name: value for name, value in pipeline.components.items() if name in components}
    given |= {name: config.get(name, config.get(f"_{name}")) for name in options if {name, f"_{name}"} & config.keys()}
    given |= overrides
    required = components - set(getattr(pipeline_class, "_optional_components", ()))
    missing = sorted(name for name in required if name not in given)
    if missing:
        raise ValueError(
            f"{pipeline_class.__name__} needs {missing}, which {type(pipeline).__name__} does not have. Pass them to "
            f"`from_pipe` by name."
        )
    shared = pipeline_class(**given)
    source = config.get("_name_or_path")
    if source is not None:
        shared.register_to_config(_name_or_path=source)
    return shared
