"""Attaching conditions to a pipeline of diffusers, and detaching them."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from ...condition import FluxCondition, check_conditions
from .handle import ATTACHED, AttachedConditions
from .stock import check_claims, check_pipeline


def attach_conditions(
    pipe: DiffusionPipeline, conditions: FluxCondition | Sequence[FluxCondition]
) -> AttachedConditions:
    """Attach conditions to a FLUX pipeline of diffusers; its own calls then run them.

    The pipeline stays what it is: its class, its components, the signature of its call and what it saves. Callbacks,
    LoRAs, offloading, compiled blocks and schedulers keep working, and other pipelines that share the transformer are
    not touched. With `FluxPipeline`, `FluxImg2ImgPipeline` and `FluxKontextPipeline` the images are those of
    [`FluxConditionedPipeline`] with the same conditions.

    ```py
    with attach_conditions(pipe, [EntityRegions(["a red cat"], [(0.0, 0.0, 0.5, 1.0)])]):
        image = pipe("a garden").images[0]
    ```

    Args:
        pipe (`DiffusionPipeline`):
            One of diffusers' twelve pipelines that call a FLUX.1 transformer, or a subclass with the same `__call__`.
        conditions (`FluxCondition` or a list of them):
            The conditions; they are encoded anew in each call.

    Returns:
        `AttachedConditions`: a context manager; without `with`, its `detach()` or [`detach_conditions`] takes the
        conditions off.

    Raises:
        TypeError: if `pipe` is another pipeline, or `conditions` holds something else.
        ValueError: if the pipeline has conditions already, or decides itself what a condition decides. What only a
            call shows (channels, rules of guidance, references of both) is refused there, before its first step.
    """
    check_pipeline(pipe)
    given = check_conditions(conditions)
    present = attached_conditions(pipe)
    if ATTACHED in vars(pipe):
        raise ValueError(
            f"{type(pipe).__name__} has conditions already: {[type(each).__name__ for each in present]}. Give all of "
            f"them in one list, after `detach_conditions(pipe)`."
        )
    check_claims(pipe, given)
    return AttachedConditions(pipe, given)


def detach_conditions(pipe: DiffusionPipeline) -> None:
    """Take all attached conditions off a pipeline, which then computes what it computed before, bit for bit.

    Args:
        pipe (`DiffusionPipeline`): The pipeline; one without attached conditions is left alone.

    Raises:
        TypeError: if `pipe` is not a FLUX pipeline of diffusers.
        RuntimeError: if the pipeline is in its loop.
    """
    check_pipeline(pipe)
    attached = vars(pipe).get(ATTACHED)
    if attached is not None:
        attached.detach()


def attached_conditions(pipe: DiffusionPipeline) -> list[FluxCondition]:
    """Return the conditions that are attached to a pipeline.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.

    Returns:
        `list[FluxCondition]`: empty without any.

    Raises:
        TypeError: if `pipe` is not a FLUX pipeline of diffusers.
    """
    check_pipeline(pipe)
    attached = vars(pipe).get(ATTACHED)
    return [] if attached is None else list(attached.conditions)
