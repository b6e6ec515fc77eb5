"""Windows: the part of the schedule in which a condition acts."""

from dataclasses import replace

from diffusers.utils import logging

from ..denoise import DenoisingStep


logger = logging.get_logger(__name__)


def check_window(owner: str, start: float, end: float) -> None:
    """Raise a `ValueError` unless `0 <= start < end <= 1`; `owner` is the class name in the message."""
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"`{owner}` has start={start} and end={end}. Both are fractions of the schedule with 0 <= start < end "
            f"<= 1, where 0 is the first step."
        )


def is_active(step: DenoisingStep, start: float, end: float) -> bool:
    """Whether the whole of a step lies in a window, by diffusers' rule for `control_guidance_start` and `_end`.

    Args:
        step (`DenoisingStep`): Gives the number of the step and how many there are.
        start (`float`): Fraction of the schedule; 0 is the first step.
        end (`float`): Fraction of the schedule; 1 is after the last step.
    """
    return step.index / step.num_steps >= start and (step.index + 1) / step.num_steps <= end


def warn_without_step(owner: str, step: DenoisingStep, start: float, end: float) -> None:
    """Warn, at the first step of a call, about a window in which no step of the call lies as a whole."""
    if step.index > 0 or step.branch != "cond":
        return
    if not any(is_active(replace(step, index=index), start, end) for index in range(step.num_steps)):
        logger.warning(
            f"{owner} acts from {start} to {end} of the schedule, but none of the {step.num_steps} steps lies in "
            f"there as a whole, so it changes nothing. Widen the window or take more steps."
        )
