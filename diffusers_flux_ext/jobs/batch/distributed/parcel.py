"""Jobs and results as they travel between machines: texts and bytes, without objects of this package."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...canonical import with_contents
from ...errors import JobError, Problem
from ...files import JobFiles
from ...reading import read_job
from ..engine import Drawn, Encoded, Work, drawn
from ..ledger import described


class RemoteError(RuntimeError):
    """An error of a worker.

    Args:
        record (`dict[str, Any]`): What the record of the failure says.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(f"{record['error']}: {record['message']}")
        self.record = record


@dataclass(frozen=True)
class Parcel:
    """A job with its inputs.

    Attributes:
        text (`str`): The job as JSON; inputs stand by name and SHA-256.
        inputs (`dict[str, bytes]`): Their content, by SHA-256.
        base (`str`, *optional*): The folder that models, modules and LoRAs are looked for in first.
    """

    text: str
    inputs: dict[str, bytes] = field(default_factory=dict)
    base: str | None = None


def pack(work: Work) -> Parcel:
    """Return a job with the content of its inputs.

    Args:
        work (`Work`): The job.

    Returns:
        `Parcel`

    Raises:
        JobError: if an input is missing.
    """
    inputs: dict[str, bytes] = {}
    content = with_contents(work.job, work.files, inputs)
    base = work.files.base
    return Parcel(json.dumps(content), inputs, None if base is None else str(Path(base).resolve()))


def unpack(parcel: Parcel) -> tuple[Any, JobFiles]:
    """Return the job of a parcel and its files.

    Args:
        parcel (`Parcel`): The parcel.

    Returns:
        `tuple[Job, JobFiles]`
    """
    base = None if parcel.base is None else Path(parcel.base)
    return read_job(parcel.text), JobFiles(base, uploads=parcel.inputs)


def draw_parcel(runner: Any, parcel: Parcel) -> dict[str, Any]:
    """Draw the job of a parcel.

    Args:
        runner (`JobRunner`): Draws.
        parcel (`Parcel`): The job.

    Returns:
        `dict[str, Any]`:
            `images` (content, width and height), `seeds` and `seconds`; or `error`, a record, and `broken`, whether
            nothing more can be drawn in this process.
    """
    try:
        result = drawn(runner, *unpack(parcel))
    except Exception as error:
        # Any job may be wrong in any way: the worker draws the others.
        return {"error": described(error), "broken": _breaks_accelerator(error)}
    images = [(image.data, image.width, image.height) for image in result.images]
    return {"images": images, "seeds": result.seeds, "seconds": result.seconds}


def drawn_of(answer: dict[str, Any]) -> Drawn:
    """Return what a worker drew.

    Args:
        answer (`dict[str, Any]`): What `draw_parcel` returned.

    Returns:
        `Drawn`

    Raises:
        JobError: if the job was wrong.
        RemoteError: if anything else failed.
    """
    if (record := answer.get("error")) is not None:
        problems = [Problem(**each) for each in record["problems"]]
        raise JobError(problems) if problems else RemoteError(record)
    return Drawn([Encoded(*image) for image in answer["images"]], answer["seeds"], answer["seconds"])


def _breaks_accelerator(error: Exception) -> bool:
    """Whether an error is one of the accelerator, which all later calls of the process repeat."""
    import torch

    kinds = getattr(torch, "AcceleratorError", ())
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
