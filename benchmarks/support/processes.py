"""Other processes on this machine: groups that compute together, and those that are watched or killed."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(work: Callable[[int], Any], count: int, timeout: float = 120) -> list[Any]:
    """Run a function in several processes, and return what each returns, in the order of their ranks.

    They are forked, since importing everything again takes longer than most work.

    Args:
        work (`Callable[[int], Any]`): What each does, from its rank.
        count (`int`): How many processes.
        timeout (`float`, *optional*, defaults to 120): Seconds that they may take.

    Raises:
        RuntimeError: if one of them fails or takes longer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("fork")
    results = [context.SimpleQueue() for _ in range(count)]
    ranks = [
        context.Process(target=_run, args=(work, rank, count, port, results[rank]), daemon=True)
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=timeout)
    states = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    if states != [0] * count:
        raise RuntimeError(f"The processes ended with {states}; None is one that took more than {timeout} seconds.")
    return [result.get() for result in results]


def _run(work: Callable[[int], Any], rank: int, count: int, port: int, result: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(seconds=60))
    result.put(work(rank))
    dist.destroy_process_group()


# What nearly all work imports, which takes seconds.
PRELOADED = ["diffusers_flux_ext.jobs", "diffusers_flux_ext.testing", "diffusers_flux_ext.training"]


def forking() -> Any:
    """Return the `multiprocessing` context of processes that begin with everything imported and nothing else.

    They are forked from a server without threads or locks, which is started once. Forks of the caller itself would
    have its locks, and a new interpreter would import for seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start_process(work: Callable[..., int | None], *arguments: Any, output: Path) -> BaseProcess:
    """Run a function in a process of its own.

    Args:
        work (`Callable[..., int or None]`): A function of a module; it returns the exit code, or nothing.
        arguments: Its arguments, which can be pickled.
        output (`Path`): File of what it prints.

    Returns:
        `multiprocessing.Process`: it runs, in the caller's environment and working directory.
    """
    process = forking().Process(target=_run_alone, args=(work, arguments, output, dict(os.environ), os.getcwd()))
    process.start()
    return process


def _run_alone(
    work: Callable[..., int | None], arguments: tuple[Any, ...], output: Path, environment: Mapping[str, str],
    folder: str,
) -> None:  # fmt: skip
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    raise SystemExit(work(*arguments))


def end_of(process: BaseProcess, seconds: float) -> int | None:
    """Wait for a process, and kill it if it takes longer, since Python would wait for it at its own end.

    Args:
        process (`multiprocessing.Process`): The process.
        seconds (`float`): How long it may take.

    Returns:
        `int`: its exit code, which is negative if it was killed.
    """
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode
