"""Uploads: images and tensors by the digest of their bytes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..checkpoints.writing import written_at_once
from .decoding import look_at
from .errors import RequestError, wrong_field
from .limits import Limits


PREFIX = "upload:"
_REFERENCE = re.compile(r"upload:([0-9a-f]{64})")
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """What is known of an upload: `kind` is `image` or `tensor`; a tensor has no width and height."""

    kind: Literal["image", "tensor"]
    width: int | None
    height: int | None
    bytes: int


class UploadStore:
    """Files named by their SHA-256 digests, so that equal ones are stored once and no name of a client is used.

    Args:
        folder (`Path`): The state folder.
        limits (`Limits`): Sizes that are accepted, and how much is kept.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder / "uploads"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._limits = limits
        self._lock = threading.Lock()
        self._known: dict[str, Upload] = {}
        for path in self._folder.glob("*.json"):
            self._restore(path)
        self._bytes = sum(upload.bytes for upload in self._known.values())

    def _restore(self, path: Path) -> None:
        try:
            upload = Upload(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return
        if path.with_suffix("").is_file():
            self._known[path.stem] = upload

    def add(self, data: bytes, media_type: str | None, field: str = "body") -> tuple[str, Upload]:
        """Look at an upload and keep it.

        Args:
            data (`bytes`): The file.
            media_type (`str`, *optional*): What the client says it is.
            field (`str`, *optional*, defaults to `"body"`): Where it came from, for messages.

        Returns:
            `tuple[str, Upload]`: its id, `upload:` and the digest, and what was found.

        Raises:
            RequestError: if it is too large, or neither an image nor a tensor that can be read.
        """
        if len(data) > self._limits.upload_bytes:
            message = f"has {len(data):,} bytes; at most {self._limits.upload_bytes:,} are accepted"
            raise wrong_field(field, message, status=413)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known:
            upload = Upload(**look_at(data, media_type, field, self._limits.pixels), bytes=len(data))
            with self._lock:
                self._keep(digest, data, upload)
        else:
            # It counts as new, so that it is not removed before a job names it.
            os.utime(self._folder / digest)
        return PREFIX + digest, self._known[digest]

    def _keep(self, digest: str, data: bytes, upload: Upload) -> None:
        if digest in self._known:
            return
        if not self.has_room(len(data)):
            raise RequestError(413, "The server keeps no more uploads. Remove finished jobs, or try again later.")
        for name, content in ((digest, data), (f"{digest}.json", json.dumps(asdict(upload)).encode())):
            with written_at_once(self._folder / name) as temporary:
                temporary.write_bytes(content)
        self._known[digest] = upload
        self._bytes += upload.bytes

    def has_room(self, size: int) -> bool:
        """Whether an upload of so many bytes can be kept beside those that are there."""
        limits = self._limits
        return self._bytes + size <= limits.keep_bytes and len(self._known) < limits.keep_uploads

    def read(self, digest: str) -> bytes:
        """Return the bytes of an upload.

        Raises:
            KeyError: if there is none of this digest.
        """
        if digest.removeprefix(PREFIX) not in self._known:
            raise KeyError(digest)
        return (self._folder / digest.removeprefix(PREFIX)).read_bytes()

    def take_in(self, value: Any, field: str = "") -> tuple[Any, list[str]]:
        """Replace `data:` URLs in a job by uploads, so that jobs stay small.

        Args:
            value: The job, or a part of it.
            field (`str`, *optional*): Where the part stands, for messages.

        Returns:
            `tuple`: the same with ids of uploads, and their digests.

        Raises:
            RequestError: if one cannot be read, or is not an upload of this server.
        """
        found: list[str] = []

        def visit(value: Any, field: str) -> Any:
            if isinstance(value, dict):
                # An input of an image's own job stands by its name and digest.
                if value.get("sha256") in self._known:
                    found.append(value["sha256"])
                return {name: visit(each, f"{field}.{name}".lstrip(".")) for name, each in value.items()}
            if isinstance(value, list):
                return [visit(each, f"{field}.{index}".lstrip(".")) for index, each in enumerate(value)]
            if not isinstance(value, str):
                return value
            taken = self._take(value, field)
            if (reference := _REFERENCE.fullmatch(taken)) is not None:
                found.append(reference[1])
            return taken

        return visit(value, field), list(dict.fromkeys(found))

    def _take(self, value: str, field: str) -> str:
        if (reference := _REFERENCE.fullmatch(value)) is not None and reference[1] not in self._known:
            raise wrong_field(field, f"there is no upload {value}; send it to /api/uploads first")
        head = _DATA_URL.match(value)
        if head is None:
            return value
        try:
            data = base64.b64decode(value[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise wrong_field(field, "the data URL is not valid base64") from None
        return self.add(data, head[1], field)[0]

    def sweep(self, named: Collection[str], unused_seconds: float) -> None:
        """Remove uploads that no job names and that have not been sent lately.

        Args:
            named (`Collection[str]`): Digests that jobs name.
            unused_seconds (`float`): How long ago they were sent at least.
        """
        oldest = time.time() - unused_seconds
        with self._lock:
            for digest in [digest for digest in self._known if digest not in named]:
                path = self._folder / digest
                if path.stat().st_mtime < oldest:
                    self._bytes -= self._known.pop(digest).bytes
                    path.with_suffix(".json").unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
