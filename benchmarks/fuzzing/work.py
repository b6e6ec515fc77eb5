"""Files tried in processes of their own, so that one that hangs or dies is a finding and not the end of the run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from .judge import Bench, Verdict
from .reader import Reader


# Tables of readers; a module that defines `READERS`.
TABLES = ("readers", "lora_readers")
# Address space over what the process has when it begins.
ADDRESSES = 6 * 2**30
# Seconds until the first answer, and for one file, which has less processor time.
STARTING, WAITING = 600, 180


def all_readers() -> dict[str, Reader]:
    """The readers of all tables by name."""
    tables = [import_module(f"benchmarks.fuzzing.{name}").READERS for name in TABLES]
    return {reader.name: reader for table in tables for reader in table}


def try_files(reader: str, seeds: list[int]) -> Iterator[tuple[int, Verdict]]:
    """
    Tries changed files.

    Args:
        reader (`str`): Name of the reader.
        seeds (`list[int]`): A seed for each file.

    Yields:
        `tuple[int, Verdict]`: the seed and what came of it.
    """
    left = list(seeds)
    while left:
        before = len(left)
        for seed, verdict in _run_worker(reader, left):
            left.remove(seed)
            yield seed, verdict
        if left:
            dead = left.pop(0)
            yield dead, Verdict("crash", "?", f"the process died or was killed after {WAITING} s")
        if before == len(left):
            raise RuntimeError(f"the worker of {reader!r} does nothing")


def _run_worker(reader: str, seeds: list[int]) -> Iterator[tuple[int, Verdict]]:
    command = [sys.executable, "-m", "benchmarks.fuzzing.work", reader]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(seeds).encode())
    process.stdin.close()
    limit = STARTING
    try:
        while True:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            limit = WAITING
            if not line:
                return
            seed, verdict = json.loads(line)
            yield seed, Verdict(**verdict)
    finally:
        process.kill()
        process.wait()


def main(reader: str) -> None:
    """Try the files whose seeds stand on stdin; writes a line of JSON for each to stdout."""
    seeds = json.load(sys.stdin)
    # Readers may write to stdout, which belongs to the results here.
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        # Whatever is written to a relative path is a finding, too.
        os.chdir(folder)
        bench = Bench(all_readers()[reader], Path(folder))
        valid = bench.check_valid()
        if valid.outcome != "read":
            results.write(json.dumps([seeds[0], asdict(Verdict("crash", "valid file", valid.message))]) + "\n")
            return
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for seed in seeds:
            results.write(json.dumps([seed, asdict(bench.try_seed(seed))]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
