"""Mutations of bytes, which know nothing of what the bytes mean."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


Mutation = Callable[[bytes, Random], bytes]


def truncate(data: bytes, rng: Random) -> bytes:
    """Cut the end off."""
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(data: bytes, rng: Random) -> bytes:
    """Flip up to eight bits, half of the time near the beginning."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        span = min(len(changed), 4096) if rng.random() < 0.5 else len(changed)
        changed[rng.randrange(span)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def drop_bytes(data: bytes, rng: Random) -> bytes:
    """Remove a run of bytes."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 8, 64, 4096)) :]


def insert_bytes(data: bytes, rng: Random) -> bytes:
    """Insert random bytes."""
    start = rng.choice((0, len(data), rng.randrange(len(data) + 1)))
    return data[:start] + rng.randbytes(rng.choice((1, 8, 64, 4096))) + data[start:]


def repeat_bytes(data: bytes, rng: Random) -> bytes:
    """Copy a run of bytes to another place."""
    start, place = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    return data[:place] + data[start : start + rng.choice((8, 64, 1024))] + data[place:]


def clear_bytes(data: bytes, rng: Random) -> bytes:
    """Fill a run with zeros or ones."""
    start, count = rng.randrange(len(data) + 1), rng.choice((8, 64, 4096))
    return data[:start] + rng.choice((b"\0", b"\xff")) * len(data[start : start + count]) + data[start + count :]


def replace_all(data: bytes, rng: Random) -> bytes:
    """Replace the whole file: empty, an HTML page, a Git LFS pointer, a zip without members, noise."""
    return rng.choice(
        (
            b"",
            b"<!DOCTYPE html><html>Not found</html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
            b"PK\5\6" + bytes(18),
            b"\x80\x02]q\x00.",
            b"{}",
            b"null",
            rng.randbytes(rng.choice((7, 8, 9, 100, 5000))),
        )
    )


RAW: tuple[Mutation, ...] = (
    truncate,
    flip_bits,
    drop_bytes,
    insert_bytes,
    repeat_bytes,
    clear_bytes,
    replace_all,
)
