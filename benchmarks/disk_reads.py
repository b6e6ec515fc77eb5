"""Ways to bring a file's pieces into one buffer: plain reads, reads past the page cache, and a memory map.

Every way runs in a process of its own and reads the whole file in pieces of the given size, after the file was dropped
from the page cache. Run from the repository's root:

    python -m benchmarks.disk_reads --folder /tmp
"""

import argparse
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.memory import peak_mib, reset_peak


WAYS = ("plain", "direct", "map")


def fill(path: Path, size: int) -> None:
    """Write a file of random bytes."""
    chunk = os.urandom(2**24)
    with path.open("wb") as file:
        for _ in range(size // len(chunk)):
            file.write(chunk)
        os.fsync(file.fileno())


def opened(way: str, path: Path, buffer: memoryview) -> Callable[[int], None]:
    """Return a function that reads the bytes from a position on into `buffer`."""
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if way == "direct" else 0))
    if way == "map":
        mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_SEQUENTIAL)

        def read(position: int) -> None:
            buffer[:] = memoryview(mapped)[position : position + len(buffer)]
            mapped.madvise(mmap.MADV_DONTNEED, position, len(buffer))

        return read

    def read_into(position: int) -> None:
        done = 0
        while done < len(buffer):
            done += os.preadv(descriptor, [buffer[done:]], position + done)
        if way == "plain":
            os.posix_fadvise(descriptor, position, done, os.POSIX_FADV_DONTNEED)

    return read_into


def measure(way: str, path: Path, piece: int) -> str:
    """Return MB/s, processor seconds per GB, and the peak of resident memory above the buffer in MiB."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    size = path.stat().st_size
    # Anonymous maps start at a page, as direct reads need it.
    buffer = memoryview(mmap.mmap(-1, piece))
    buffer[:] = bytes(piece)
    read = opened(way, path, buffer)
    reset_peak()
    before, start, cpu = peak_mib(), time.perf_counter(), time.process_time()
    for position in range(0, size, piece):
        read(position)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return f"{size / seconds / 1e6} {cpu / size * 1e9} {peak_mib() - before}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure")
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--piece-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    path, piece = args.folder / "disk_reads.bin", args.piece_mib * 2**20
    if args.way:
        sys.stdout.write(measure(args.way, path, piece) + "\n")
        return
    command = [sys.executable, "-m", "benchmarks.disk_reads", *sys.argv[1:]]
    results: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    fill(path, args.pieces * piece)
    try:
        for way in WAYS * args.repeats:
            done = subprocess.run([*command, "--way", way], check=True, stdout=subprocess.PIPE, text=True)
            results[way].append([float(number) for number in done.stdout.split()])
    finally:
        path.unlink()
    sys.stdout.write(
        "| way | MB/s | processor s per GB | resident above the buffer, MiB |\n|---|---:|---:|---:|" + "\n"
    )
    for way, rows in results.items():
        speed, cpu, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        sys.stdout.write(f"| {way} | {speed:.0f} | {cpu:.2f} | {memory:.0f} |\n")


if __name__ == "__main__":
    main()
