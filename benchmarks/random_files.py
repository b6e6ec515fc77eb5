"""Safetensors files of random weights, written without holding them in memory."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


_POOL = 2**24
_SHARD_BYTES = 8 * 10**9


def write_random_weights(shapes: Mapping[str, tuple[int, ...]], folder: Path, name: str) -> int:
    """Write bfloat16 weights of these shapes in files of about 8 GB and an index, or in one if they are fewer.

    The numbers repeat after 2 ** 24; they are normal with a deviation of 0.02.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shapes by key; keys are written in alphabetical order.
        folder (`Path`): Where to write.
        name (`str`): File name without its suffix.

    Returns:
        `int`: the number of bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for key in sorted(shapes):
        if sum(map(_size, shards[-1].values())) > _SHARD_BYTES:
            shards.append({})
        shards[-1][key] = shapes[key]
    files = [f"{name}.safetensors"]
    if len(shards) > 1:
        files = [f"{name}-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
        index = {"weight_map": {key: file for file, shard in zip(files, shards, strict=True) for key in shard}}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    for file, shard in zip(files, shards, strict=True):
        _write(shard, folder / file)
    return sum((folder / file).stat().st_size for file in files)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * 2


def _write(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + _size(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in _random_bytes(end):
            file.write(piece)


def _random_bytes(count: int) -> Iterator[memoryview]:
    pool = (torch.randn(_POOL, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    array: Any = pool.view(torch.uint8).numpy()
    view = memoryview(array)
    while count:
        yield view[:count]
        count -= min(count, len(view))
