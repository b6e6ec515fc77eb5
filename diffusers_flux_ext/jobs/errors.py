"""What is wrong with a job, field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..validation import line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job.

    Args:
        field (`str`): Where, such as `"conditions.0.controlnet.path"`; empty for the job as a whole.
        message (`str`): What is wrong there, without a full stop.
    """

    field: str
    message: str

    def __str__(self) -> str:
        return line(self.field, self.message) if self.field else f"{self.message[0].upper()}{self.message[1:]}."


class JobError(ValueError):
    """A job is wrong; each line of the message names a field.

    Args:
        problems (`Sequence[Problem]`): What is wrong.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        listed = [str(problem) for problem in self.problems]
        super().__init__(
            listed[0] if len(listed) == 1 else "\n".join(["The job is wrong:", *(f"- {e}" for e in listed)])
        )

    @classmethod
    def of(cls, field: str, message: str) -> JobError:
        """Return the error of one problem."""
        return cls([Problem(field, message)])


class JobCancelled(Exception):
    """Raise it in `on_step` to stop a job at once."""
