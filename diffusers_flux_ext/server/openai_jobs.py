"""Requests of OpenAI's images API as jobs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import RequestError, wrong_field
from .served import Served, ServedModel


SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})", re.ASCII)
TOKEN_SIDE = 16
USUAL_SIDE = 1024
FORMATS = ("png", "jpeg", "webp")


def generation_job(request: Mapping[str, Any], served: Served) -> dict[str, Any]:
    """Return the job of a request for images.

    Args:
        request (`Mapping[str, Any]`): `prompt`, and `model`, `n`, `size`, `output_format`, `output_compression` and
            `flux`, which holds the rest of a job and wins.
        served (`Served`): What the server offers.

    Returns:
        `dict[str, Any]`

    Raises:
        RequestError: if a value is wrong.
    """
    rest = request.get("flux") or {}
    if not isinstance(rest, Mapping) or not isinstance(rest.get("call", {}), Mapping):
        raise wrong_field("flux", "expected the rest of a job, an object whose `call` is one")
    call: dict[str, Any] = {"prompt": request["prompt"], **_size(request.get("size"))}
    if (count := request.get("n")) is not None and count > 1:
        call["num_images_per_prompt"] = count
    job = {
        "model": {"path": model_of(request.get("model"), served).name},
        "output": _output(request),
        **rest,
        "call": {**call, **rest.get("call", {})},
    }
    return {name: value for name, value in job.items() if value is not None}


def edit_job(
    request: Mapping[str, Any],
    images: Sequence[str],
    mask: str | None,
    size: tuple[int, int],
    served: Served,
) -> dict[str, Any]:
    """Return the job of a request for an edit.

    Args:
        request (`Mapping[str, Any]`): As of [`generation_job`].
        images (`Sequence[str]`): Uploads of the images.
        mask (`str`, *optional*): Upload of the mask, white where the image is drawn anew.
        size (`tuple[int, int]`): Width and height of the first image, whose shape the result takes by default.
        served (`Served`): What the server offers.

    Returns:
        `dict[str, Any]`

    Raises:
        RequestError: if a value is wrong.
    """
    model = model_of(request.get("model"), served)
    job = generation_job(request, served)
    area = model.call.get("width", USUAL_SIDE) * model.call.get("height", USUAL_SIDE)
    job["call"] = {**_alike(size, area), **job["call"]}
    if mask is not None and len(images) != 1:
        raise wrong_field("image", f"got {len(images)} images with a mask; expected one")
    if mask is not None:
        own: dict[str, Any] = {
            "type": "FillMask" if model.fills else "InpaintRegion",
            "image": images[0],
            "mask": mask,
        }
    elif area < USUAL_SIDE**2:
        # The sizes that Kontext prefers are larger than anything that this model draws.
        own = {"type": "ReferenceImages", "images": list(images), "preferred_size": False, "max_area": area}
    else:
        own = {"type": "ReferenceImages", "images": list(images)}
    given = job.get("conditions", [])
    if not isinstance(given, list):
        raise wrong_field("flux.conditions", "expected a list of conditions")
    return {**job, "conditions": [own, *given]}


def _alike(size: tuple[int, int], area: int) -> dict[str, int]:
    """Return the size of the same shape with about an area, in whole tokens."""
    scale = math.sqrt(area / (size[0] * size[1]))
    width, height = (max(TOKEN_SIDE, round(side * scale / TOKEN_SIDE) * TOKEN_SIDE) for side in size)
    return {"width": width, "height": height}


def model_of(name: str | None, served: Served) -> ServedModel:
    """Return the model that is asked for; the first where none is.

    Raises:
        RequestError: if it is not offered.
    """
    if name is None:
        return served.models[served.default_model]
    if name not in served.models:
        offered = ", ".join(served.models)
        message = f"the server does not offer {name[:100]!r}; it offers {offered}"
        raise RequestError(404, f"model: {message}", [("model", message)])
    return served.models[name]


def _size(size: str | None) -> dict[str, int]:
    if size in (None, "auto"):
        return {}
    found = SIZE.fullmatch(str(size))
    if found is None:
        raise wrong_field("size", f"got {size!r}; expected WIDTHxHEIGHT in pixels, such as '1024x1024', or 'auto'")
    return {"width": int(found[1]), "height": int(found[2])}


def _output(request: Mapping[str, Any]) -> dict[str, Any] | None:
    kind, quality = request.get("output_format"), request.get("output_compression")
    if kind is None:
        return None
    if kind not in FORMATS:
        raise wrong_field("output_format", f"got {kind!r}; expected one of {', '.join(FORMATS)}")
    return {"format": kind} | ({} if quality is None or kind == "png" else {"quality": quality})
