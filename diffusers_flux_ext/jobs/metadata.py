"""Result images with their job inside of them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..checkpoints.writing import written_at_once
from .canonical import described
from .errors import JobError
from .files import JobFiles
from .job import Job


ENTRY = "flux_ext_job"
INDEX = "flux_ext_index"
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_JPEG_METADATA = 65_000
_DESCRIPTION = 0x010E


def save_result_image(
    image: Image.Image, path: str | os.PathLike[str], job: Job, index: int = 0, files: JobFiles | None = None
) -> None:
    """Write an image of a job, whole or not at all, with the job in its metadata.

    Args:
        image (`PIL.Image.Image`): The image.
        path (`str` or `os.PathLike`): The file; its folder must exist.
        job (`Job`): The job, whose `output` says in which format.
        index (`int`, defaults to 0): Which image of the job it is.
        files ([`JobFiles`], *optional*): The files of the job.

    Raises:
        JobError: if an input is missing, or the job is too long for the metadata of a JPEG file.
        OSError: if the file cannot be written.
    """
    data = encode_result_image(image, job, index, files)
    with written_at_once(path) as temporary:
        temporary.write_bytes(data)


def encode_result_image(image: Image.Image, job: Job, index: int = 0, files: JobFiles | None = None) -> bytes:
    """Return an image of a job as the content of a file, with the job in its metadata.

    Boxes, strokes and polygons stand in it as they are; other inputs by their names and the SHA-256 of their content.
    Of paths that are absolute only the last part is kept.

    Args:
        image (`PIL.Image.Image`): The image.
        job (`Job`): The job, whose `output` says in which format.
        index (`int`, defaults to 0): Which image of the job it is.
        files ([`JobFiles`], *optional*): The files of the job.

    Returns:
        `bytes`

    Raises:
        JobError: if an input is missing, or the job is too long for the metadata of a JPEG file.
    """
    text = json.dumps(described(job, files or JobFiles()), sort_keys=True)
    options: dict[str, Any] = {}
    if job.output.format == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text(ENTRY, text)
        options["pnginfo"].add_text(INDEX, str(index))
    else:
        exif = Image.Exif()
        exif[_DESCRIPTION] = f"{ENTRY}={text}"
        if job.output.format == "jpeg" and len(exif.tobytes()) > MOST_JPEG_METADATA:
            raise JobError.of("output.format", "is `jpeg`, which cannot hold a job so long; take `png` or `webp`")
        options |= {"exif": exif, "quality": job.output.quality or 95}
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[job.output.format], **options)
    return buffer.getvalue()


def is_image(path: Path) -> bool:
    """Whether a path names an image, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def job_in_image(path: Path) -> dict[str, Any]:
    """Return the content of the job in an image's metadata.

    Args:
        path (`Path`): An image that [`save_result_image`] wrote.

    Returns:
        `dict[str, Any]`

    Raises:
        JobError: if there is no job in it.
        OSError: if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            found = image.info.get(ENTRY) or str(image.getexif().get(_DESCRIPTION, "")).removeprefix(f"{ENTRY}=")
            content = json.loads(found)
    except (Image.UnidentifiedImageError, ValueError, SyntaxError):
        content = None
    if not isinstance(content, dict):
        raise JobError.of("", f"`{path}` has no job in its metadata; they are lost when another program saves it")
    return content
