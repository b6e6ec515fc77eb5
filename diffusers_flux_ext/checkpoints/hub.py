"""Links to single files on the Hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download


HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
_LINK = re.compile(
    r"(?:https://)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/]+/[^/]+)/"
    r"(?:(?:blob|resolve)/(?P<revision>[^/]+)/)?(?P<file>[^?]+)(?:\?.*)?"
)


def is_repository(source: str, endings: Collection[str]) -> bool:
    """Whether a path that does not exist can be the name of a repository, `owner/name`.

    Args:
        source (`str`): The path.
        endings (`Collection[str]`): Suffixes of files, which are not names of repositories.

    Returns:
        `bool`
    """
    return _REPOSITORY.fullmatch(source) is not None and Path(source).suffix.lower() not in endings


def local_file(source: str | Path, hub: Mapping[str, Any]) -> str | Path:
    """Return a local file, downloaded if the source is a link to the Hub of the kind `from_single_file` takes.

    Args:
        source (`str` or `Path`):
            A local path, or a link such as `https://huggingface.co/<owner>/<name>/blob/main/<file>`.
        hub (`Mapping[str, Any]`):
            Arguments of `huggingface_hub.hf_hub_download`, of those in `HUB_ARGUMENTS`; `revision` takes precedence
            over the link's.

    Returns:
        `str` or `Path`: a path; `source` itself if it is not such a link.
    """
    link = _LINK.fullmatch(str(source))
    if link is None or Path(source).exists():
        return source
    given = {"revision": link["revision"], **{name: value for name, value in hub.items() if value is not None}}
    return hf_hub_download(link["repo"], link["file"], **given)
