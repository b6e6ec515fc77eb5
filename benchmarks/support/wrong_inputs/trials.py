"""Trying one value of one argument, and judging what became of it."""

import logging
import random
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import diffusers_flux_ext
from benchmarks.support.wrong_inputs.subjects import Subject, subjects
from benchmarks.support.wrong_inputs.values import GENERIC, distortions


Outcome = Literal["accepted", "refused", "foreign", "unnamed", "late", "not finite", "hang"]
PACKAGE = str(Path(diffusers_flux_ext.__file__).parent)
SECONDS = 60
STOCK_CHECKS = ("check_inputs", "prepare_ip_adapter_image_embeds")


@dataclass(frozen=True)
class Trial:
    """One value of one argument of one subject, all by name."""

    subject: str
    argument: str
    value: str


@dataclass(frozen=True)
class Result:
    """What became of a trial: the outcome, and the error or what was found."""

    trial: Trial
    outcome: Outcome
    message: str = ""


def trials_of(subject: Subject) -> list[Trial]:
    """All trials of a subject."""
    return [
        Trial(subject.name, argument, value)
        for argument in subject.arguments
        for value in [*GENERIC, *distortions(subject.valid(argument).get(argument))]
    ]


def all_trials() -> list[Trial]:
    """The trials of every public pipeline and condition."""
    return [trial for subject in subjects().values() for trial in trials_of(subject)]


def sample(count: int, seed: int) -> list[Trial]:
    """Some trials, the same for a seed and a set of trials."""
    return random.Random(seed).sample(all_trials(), count)


def attempt(trial: Trial) -> Result:
    """Call the subject with the value."""
    subject = subjects()[trial.subject]
    given = subject.valid(trial.argument)
    # A generator is used up by each call.
    given |= {name: value.clone_state() for name, value in given.items() if isinstance(value, torch.Generator)}
    make = {**GENERIC, **distortions(given.get(trial.argument))}[trial.value]
    try:
        given[trial.argument] = make()
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return Result(trial, "refused", f"the value cannot be made: {error}")
    calls: list[None] = []
    handle = subject.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        with _quiet(), _limited():
            images = subject.run(**given)
    except TimeoutError:
        return Result(trial, "hang", f"longer than {SECONDS} s")
    except Exception as error:
        return _judge(trial, error, bool(calls))
    finally:
        handle.remove()
    return Result(trial, "accepted") if _is_finite(images) else Result(trial, "not finite", "images with NaN")


def _judge(trial: Trial, error: Exception, began: bool) -> Result:
    message = f"{type(error).__name__}: {error}"
    if began:
        return Result(trial, "late", message)
    if not _is_deliberate(error):
        return Result(trial, "foreign", message)
    if trial.argument not in str(error):
        return Result(trial, "unnamed", message)
    return Result(trial, "refused", message)


def _is_deliberate(error: Exception) -> bool:
    """Whether this package raises it in a `raise` statement of its own, or a check of diffusers' pipeline does."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = str(last.line).startswith("raise ")
    own = last.filename.startswith(PACKAGE) or last.name in STOCK_CHECKS
    return own and raised and isinstance(error, (TypeError, ValueError, OSError))


def _is_finite(images: Any) -> bool:
    if isinstance(images, torch.Tensor):
        return bool(torch.isfinite(images).all())
    return all(np.isfinite(np.asarray(image, dtype=np.float64)).all() for image in images)


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
