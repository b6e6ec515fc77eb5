"""Try files in separate processes, so that one that hangs or crashes is a finding and does not end the run."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from .judge import Bench, Verdict
from .reader import Reader


# Tables of readers; a module that defines `READERS`.
TABLES = ("readers", "lora_readers")
# Address space beyond that of the process at its start.
ADDRESSES = 6 * 2**30
# Seconds until an answer: on a busy machine more than the processor time of a file.
PATIENCE = 120


def all_readers() -> dict[str, Reader]:
    """Return the readers of all tables by name."""
    tables = [import_module(f"benchmarks.fuzzing.{name}").READERS for name in TABLES]
    return {reader.name: reader for table in tables for reader in table}


def try_files(reader: Reader, seeds: list[int]) -> Iterator[tuple[int, Verdict]]:
    """Try changed files.

    Args:
        reader (`Reader`): The reader.
        seeds (`list[int]`): A seed for each file.

    Yields:
        `tuple[int, Verdict]`: the seed and its verdict.
    """
    left = list(seeds)
    while left:
        for verdict in _answers(reader, left):
            yield left.pop(0), verdict
        if left:
            yield left.pop(0), Verdict("crash", "?", f"the process died, or was killed after {PATIENCE} s")


def _answers(reader: Reader, seeds: list[int]) -> Iterator[Verdict]:
    """Yield the answers of a process that is forked here, so that libraries are imported once."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(reader, list(seeds), sender), daemon=True)
    process.start()
    sender.close()
    try:
        while receiver.poll(PATIENCE):
            yield receiver.recv()
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()


def _work(reader: Reader, seeds: list[int], sender: Connection) -> None:
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with tempfile.TemporaryDirectory() as folder:
        # Anything written to a relative path is a finding, too.
        os.chdir(folder)
        bench = Bench(reader, Path(folder))
        valid = bench.check_valid()
        # Not every layout can hold every format.
        if valid.outcome != "read" and "cannot hold" not in valid.message:
            sender.send(Verdict("crash", "valid file", valid.message))
            return
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for seed in seeds:
            sender.send(bench.try_seed(seed))
    sender.close()
