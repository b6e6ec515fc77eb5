"""Sharing components between pipelines without touching them."""

from typing import Any, TypeVar

from diffusers import DiffusionPipeline

from .._compat import component_names


PipelineT = TypeVar("PipelineT", bound=DiffusionPipeline)


def share_components(pipeline_class: type[PipelineT], pipeline: DiffusionPipeline, **overrides: Any) -> PipelineT:
    """Make a pipeline from another one's components; every module keeps its data type, device and hooks.

    Args:
        pipeline_class (`type`): The class to make, ours or diffusers'.
        pipeline (`DiffusionPipeline`): Where the components come from.
        overrides: Components and constructor arguments that replace the source's or that it lacks.

    Returns:
        `DiffusionPipeline`: an instance of `pipeline_class`.

    Raises:
        ValueError: if a component without a default is missing, or an override is no argument of the constructor.
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
