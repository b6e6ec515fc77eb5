"""OpenAI's images API, so that its clients work as they are."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from ..decoding import image_type, mask_of_alpha
from ..errors import RequestError, wrong_field
from ..events import LAST
from ..openai_jobs import FORMATS, edit_job, generation_job, model_of
from ..records import Record
from ..service import JobService
from ..uploads import Upload
from .answers import JOB_ERRORS
from .reading import client_of, parse_json, service_of


router = APIRouter(prefix="/v1", tags=["openai"])

Extra = Annotated[Any, Field(description="Accepted as clients send it; it has no meaning for FLUX.1.")]


class ImagesRequest(BaseModel):
    """A request for images."""

    model_config = ConfigDict(extra="forbid")
    prompt: Annotated[str, Field(max_length=32_000)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4})$")] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=1, le=100)] | None = None
    stream: Annotated[Literal[False] | None, Field(description="Events of a job: `/api/jobs/{id}/events`.")] = None
    flux: Annotated[dict[str, Any] | None, Field(description="The rest of a job, as of `/api/schema`.")] = None
    background: Extra = None
    input_fidelity: Extra = None
    moderation: Extra = None
    partial_images: Extra = None
    quality: Extra = None
    style: Extra = None
    user: Extra = None


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None


class Drawn(BaseModel):
    """A job of this server that drew the images."""

    job: str
    seeds: list[int]


class ImagesResponse(BaseModel):
    """The images of a request."""

    created: int
    data: list[ImageData]
    output_format: str
    flux: Drawn


class Model(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "diffusers_flux_ext"


class Models(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/models")
def models(request: Request) -> Models:
    """List the models."""
    return Models(data=[Model(id=name) for name in service_of(request).served.models])


@router.get("/models/{name}", responses={404: JOB_ERRORS[400]})
def model(request: Request, name: str) -> Model:
    """Show a model."""
    return Model(id=model_of(name, service_of(request).served).name)


@router.post("/images/generations", responses={**JOB_ERRORS, 404: JOB_ERRORS[400]})
async def generations(request: Request, given: ImagesRequest) -> ImagesResponse:
    """Draw images, and answer when they are done."""
    service = service_of(request)
    return await _answer(request, given, generation_job(given.model_dump(), service.served))


PART = {"type": "string", "format": "binary"}
EDIT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["prompt", "image"],
                    "properties": {
                        "prompt": {"type": "string"},
                        "image": {"type": "array", "items": PART},
                        "mask": {**PART, "description": "Transparent where the image is drawn anew."},
                        "model": {"type": "string"},
                        "n": {"type": "integer", "minimum": 1, "maximum": 10},
                        "size": {"type": "string"},
                        "response_format": {"enum": ["b64_json", "url"]},
                        "output_format": {"enum": list(FORMATS)},
                        "flux": {"type": "string", "description": "The rest of a job, as JSON."},
                    },
                }
            }
        },
    }
}


@router.post("/images/edits", responses={**JOB_ERRORS, 404: JOB_ERRORS[400]}, openapi_extra=EDIT_BODY)
async def edits(request: Request) -> ImagesResponse:
    """Draw a region of an image anew, or from references, and answer when it is done."""
    service = service_of(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError(415, f"Send a form with `Content-Type: multipart/form-data`, got {kind or 'no type'!r}.")
    most = service.limits.conditions
    async with request.form(max_files=most + 1, max_fields=len(ImagesRequest.model_fields)) as form:
        given = _read_fields(form)
        images = [
            await _upload(service, part, "image") for name in ("image", "image[]") for part in form.getlist(name)
        ]
        mask = [await _upload(service, part, "mask") for part in form.getlist("mask")]
    job = await run_in_threadpool(_edit, service, given, images, mask)
    return await _answer(request, given, job)


def _edit(
    service: JobService, given: ImagesRequest, images: list[tuple[str, Upload]], masks: list[tuple[str, Upload]]
) -> dict[str, Any]:
    if not images:
        raise wrong_field("image", "expected an image as a file of the form")
    size = (images[0][1].width or 1, images[0][1].height or 1)
    mask = None
    if masks:
        found = (masks[0][1].width, masks[0][1].height)
        if found != size:
            raise wrong_field(
                "mask", f"has {found[0]} x {found[1]} pixels; expected {size[0]} x {size[1]}, the image's"
            )
        mask = service.upload(mask_of_alpha(service.uploads.read(masks[0][0])), "image/png")[0]
    return edit_job(given.model_dump(), [name for name, _ in images], mask, size, service.served)


def _read_fields(form: FormData) -> ImagesRequest:
    texts: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
    if "flux" in texts:
        texts["flux"] = parse_json(texts["flux"], "flux")
    try:
        return ImagesRequest.model_validate({name: value for name, value in texts.items() if name not in _FILES})
    except ValidationError as error:
        problems = [(".".join(map(str, found["loc"])), found["msg"]) for found in error.errors()]
        raise RequestError(422, "; ".join(map(": ".join, problems)), problems) from None


_FILES = ("image", "image[]", "mask")


async def _upload(service: JobService, part: UploadFile | str, field: str) -> tuple[str, Upload]:
    if isinstance(part, str):
        raise wrong_field(field, "expected a file, got a text")
    data = await part.read()
    # Clients that are given bytes do not say what they are.
    return await run_in_threadpool(service.uploads.add, data, image_type(data) or part.content_type, field)


async def _answer(request: Request, given: ImagesRequest, job: Mapping[str, Any]) -> ImagesResponse:
    service = service_of(request)
    record = await run_in_threadpool(service.submit, job, client_of(request))
    await _wait(request, service, record)
    if record.status == "cancelled":
        raise RequestError(409, "The job was cancelled.")
    if record.status == "failed" and record.error is not None:
        status = 500 if record.error["type"] == "server_error" else 422
        raise RequestError(
            status, record.error["message"], [(e["field"], e["message"]) for e in record.error["problems"]]
        )
    if record.status != "done":
        raise RequestError(503, "The server stopped before the job was done.")
    data = [_image(request, service, record, index, given.response_format) for index in range(len(record.images))]
    seeds = [image["seed"] for image in record.images]
    kind = record.images[0]["file"].rpartition(".")[2]
    return ImagesResponse(
        created=int(time.time()), data=data, output_format=kind, flux=Drawn(job=record.id, seeds=seeds)
    )


async def _wait(request: Request, service: JobService, record: Record) -> None:
    """Wait for the end of a job, and cancel it when the client has gone."""
    live = service.live.get(record.id)
    if live is None:
        return
    async for event in live.log.listen(pause=1.0):
        if event is not None and event.name in LAST:
            return
        if await request.is_disconnected():
            service.cancel(record.id)
            return


def _image(request: Request, service: JobService, record: Record, index: int, kind: str | None) -> ImageData:
    if kind == "url":
        return ImageData(url=f"{request.base_url}{record.public_images()[index]['url'].lstrip('/')}")
    path = service.store.image(record, index)
    if path is None:
        raise RequestError(404, "The image was removed.")
    return ImageData(b64_json=base64.b64encode(path.read_bytes()).decode())
