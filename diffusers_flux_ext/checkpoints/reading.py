"""Reading files of weights that may be broken or hostile: safetensors, pickles of tensors, and JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .messages import list_keys, shorten


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
# Headers and configs are text of some kilobytes, which parse to objects many times as large.
LARGEST_TEXT = 16 * 2**20
_DEEPEST_NESTING = 3


def check_file(path: str | os.PathLike[str]) -> Path:
    """Check that a path is a regular file, which can be read without waiting for another program.

    Args:
        path (`str` or `os.PathLike`): A local path.

    Returns:
        `Path`: the same.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is a folder, a pipe, a device or the like.
        OSError: If it cannot be accessed.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"There is no file `{path}`. Pass a local path, such as `hf_hub_download` returns."
        ) from error
    except ValueError as error:
        raise ValueError(f"`{shorten(str(path))}` is not a path: {error}.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or the like"
        raise ValueError(f"`{path}` is {kind}; expected an ordinary file.")
    return path


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Check the header of a safetensors file, then open it.

    Args:
        path (`str` or `os.PathLike`): A local file.

    Yields:
        What `safetensors.safe_open` gives: `keys()`, `get_slice(key)`, `get_tensor(key)`, `metadata()`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a safetensors file, was cut off, or holds data types that torch does not have.
        OSError: If it cannot be read.
    """
    path = check_file(path)
    _check_header_length(path)
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OverflowError) as error:
        raise ValueError(f"`{path}` is not an intact safetensors file: {shorten(str(error))}.") from error
    except OSError as error:
        raise OSError(f"`{path}` cannot be read: {error}.") from error
    with file as reader:
        odd = sorted(key for key in reader.keys() if reader.get_slice(key).get_dtype() not in DTYPES)
        if odd:
            code = reader.get_slice(odd[0]).get_dtype()
            raise ValueError(f"`{path}` has data types that are not read: {list_keys(odd)}, the first as {code}.")
        yield reader


def _check_header_length(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(
            f"`{path}` is not a whole safetensors file: it has {size} bytes, and its header would end at "
            f"{8 + length}. Was the download cut off?"
        )
    if length > LARGEST_TEXT:
        raise ValueError(f"`{path}` has a header of {length} bytes; those of models have less than {LARGEST_TEXT}.")


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Load a pickle without running code, and without unpacking more than the size of the file.

    Args:
        path (`str` or `os.PathLike`): A local file that `torch.save` wrote.

    Returns:
        What it holds: tensors, numbers, text, and lists and dictionaries of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or asks for code.
        OSError: If it cannot be read.
    """
    path = check_file(path)
    is_archive = _is_archive(path)
    if is_archive:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped, so that part of a large file can be read; only archives (all but very old files) can be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    # With hostile bytes, the unpickler raises errors of any kind.
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise OSError(f"`{path}` cannot be read: {error}.") from error
        found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        asked = f", it asks for `{shorten(found.group(1))}`" if found else ""
        raise ValueError(
            f"`{path}` is not a pickle of plain tensors ({type(error).__name__}{asked}); others are not read: they "
            "could run code."
        ) from error


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        # Python raises for some broken archives here, and refuses them by name when they are opened.
        return True


def read_pickle(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a pickle of tensors only, without running code. The tensors of a large file are mapped into memory.

    Args:
        path (`str` or `os.PathLike`): A local file that `torch.save` wrote.

    Returns:
        `Mapping`: the state dict, which may be nested.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, holds more than tensors with names, or takes far more memory than disk.
        OSError: If it cannot be read.
    """
    path = Path(path)
    loaded = load_pickle(path)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"`{path}` holds a {type(loaded).__name__}; expected a state dict.")
    taken = check_state_dict(loaded, path)
    if taken > 2 * path.stat().st_size:
        raise ValueError(f"The tensors of `{path}` take {taken} bytes, far more than the file. Was it tampered with?")
    return loaded


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    # Python's reader of archives raises a dozen kinds of errors for broken ones.
    except Exception as error:
        raise ValueError(f"`{path}` is not an intact archive of torch: {type(error).__name__}.") from error
    if unpacked > 2 * path.stat().st_size:
        raise ValueError(
            f"`{path}` would unpack to {unpacked} bytes, far more than it has. `torch.save` does not compress: pack "
            "it anew, or save the state dict as safetensors."
        )


def check_state_dict(state_dict: Mapping[Any, Any], source: object = "state dict", depth: int = 0) -> int:
    """Check that a state dict, nested ones included, holds ordinary named tensors.

    Args:
        state_dict (`Mapping`): What a file or a caller gave.
        source (`object`, *optional*, defaults to `"state dict"`): What the error names.
        depth (`int`, *optional*, defaults to 0): How deep it is nested.

    Returns:
        `int`: the bytes that its tensors take.

    Raises:
        ValueError: If it holds anything else.
    """
    names = [key for key in state_dict if not isinstance(key, str)]
    if names or depth > _DEEPEST_NESTING:
        raise ValueError(
            f"`{source}` is not a state dict: it has the keys {list_keys(names)}, which are not strings."
            if names
            else f"`{source}` holds state dicts in state dicts without end."
        )
    total = 0
    for key, value in state_dict.items():
        if isinstance(value, Mapping):
            total += check_state_dict(value, source, depth + 1)
        elif not _is_plain(value):
            kind = f"{value.layout} tensor on {value.device}" if isinstance(value, torch.Tensor) else type(value)
            raise ValueError(f"`{source}` holds a {kind} as `{shorten(key)}`; expected ordinary tensors only.")
        else:
            total += value.numel() * value.element_size()
    return total


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_nested
    )


def read_weights_file(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a weights file: safetensors, or a pickle such as `ip-adapter.bin` without running its code.

    Args:
        path (`str` or `os.PathLike`):
            Local file. Anything that does not end in `.safetensors` or `.sft` is read as a pickle of tensors only.

    Returns:
        `Mapping`: the state dict as it is in the file, which may be nested.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, or a pickle holds more than tensors.
        OSError: If it cannot be read.
    """
    path = Path(path)
    if path.suffix not in SAFETENSORS_SUFFIXES:
        return read_pickle(path)
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object, such as a config or the index of a model in several files.

    Args:
        path (`str` or `os.PathLike`): A local file.

    Returns:
        `dict[str, Any]`

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is larger than 16 MiB or not a JSON object.
        OSError: If it cannot be read.
    """
    path = check_file(path)
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError(f"`{path}` has {path.stat().st_size} bytes; configs and indices have less.")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not JSON: {shorten(str(error))}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"`{path}` holds a {type(found).__name__}; expected a JSON object.")
    return found
