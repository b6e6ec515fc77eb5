"""The engines of `flux-ext run`: this process, processes of `accelerate launch`, and actors of a Ray cluster."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from .errors import CommandLineError
from .extras import missing
from .parsing import number, parse_positive


if TYPE_CHECKING:
    from ..jobs.batch import Engine
    from .progress import Progress

LOCAL, ACCELERATE, RAY = "local", "accelerate", "ray"
LAUNCH = "accelerate launch --num_processes N -m diffusers_flux_ext.cli.main run JOBS --out DIR --engine accelerate"
# What makes libraries wait for the other processes.
GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add what chooses an engine."""
    add = parser.add_argument_group("engines").add_argument
    add(
        "--engine",
        choices=(LOCAL, ACCELERATE, RAY),
        default=LOCAL,
        help="what draws: this process (default), each process of `accelerate launch`, or workers on a Ray cluster",
    )
    add(
        "--tries",
        type=parse_positive,
        default=3,
        metavar="N",
        help="how often a job is begun by processes that end with it until it counts as failed (default: 3)",
    )
    add("--workers", type=parse_positive, metavar="N", help="workers of Ray (default: one for each GPU)")
    add("--ray-address", metavar="ADDRESS", help="the Ray cluster, for example auto (default: one on this machine)")
    add("--timeout", type=number(above=0), metavar="SECONDS", help="after which Ray ends the worker of a job")


def is_url(place: str) -> bool:
    """Whether a place is a URL, not a path."""
    return "://" in place


def check_engine(args: argparse.Namespace) -> None:
    """Check the flags of engines; raises [`CommandLineError`]."""
    if args.engine == RAY:
        if missing(["ray"]):
            raise CommandLineError("ray is missing: `pip install 'diffusers-flux-ext[jobs,ray]'`")
        if args.device not in (None, "cpu"):
            raise CommandLineError(
                f"--device {args.device}: Ray gives each worker a GPU of its own; leave it out, or give cpu"
            )
        return
    for flag in ("workers", "ray_address", "timeout"):
        if getattr(args, flag) is not None:
            raise CommandLineError(f"--{flag.replace('_', '-')} has no effect without --engine ray")
    if args.engine == ACCELERATE:
        if not is_launched(os.environ):
            raise CommandLineError(f"--engine accelerate belongs to processes of a launcher: `{LAUNCH}`")
        if args.device is not None and ":" in args.device:
            raise CommandLineError(
                f"--device {args.device}: each process takes a device of its own; give only the kind"
            )


def is_launched(environment: Mapping[str, str]) -> bool:
    """Whether this process was started by `accelerate launch` or `torchrun`.

    Args:
        environment (`Mapping[str, str]`): Its environment.
    """
    return "LOCAL_RANK" in environment or any(name.startswith("ACCELERATE_") for name in environment)


def choose_device(args: argparse.Namespace) -> None:
    """Give each process of a launcher its own device, and let it draw by itself.

    Jobs need no process group, so that no process waits for another one, and one may end without the others.

    Args:
        args (`argparse.Namespace`): The command line; `device` and `title` are changed.
    """
    if args.engine != ACCELERATE:
        return
    import torch

    rank, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
    for name in GROUP_VARIABLES:
        os.environ.pop(name, None)
    args.title = f"{args.title} [{rank}]"
    args.device = device_of(local_rank, args.device, accelerators())
    if args.device != "cpu":
        torch.accelerator.set_device_index(torch.device(args.device).index or 0)


def accelerators() -> list[str]:
    """Return the names of the accelerators that PyTorch sees, such as `"cuda:0"`."""
    from .devices import available_devices

    return [name for name in available_devices() if name != "cpu"]


def device_of(local_rank: int, kind: str | None, there: list[str]) -> str:
    """Return the device of a process.

    Args:
        local_rank (`int`): The number of the process on its machine, from 0.
        kind (`str`, *optional*): The kind of device that was asked for.
        there (`list[str]`): The accelerators of the machine.

    Returns:
        `str`: the accelerator of that number, counted again from 0 if there are fewer; `"cpu"` without any.
    """
    if kind == "cpu" or not there:
        return "cpu"
    return there[local_rank % len(there)]


def make_engine(args: argparse.Namespace, progress: Progress) -> Engine:
    """Return the engine of a command line.

    Args:
        args (`argparse.Namespace`): The command line.
        progress (`Progress`): Is told what is drawn.

    Returns:
        `Engine`
    """
    from ..jobs import JobRunner
    from ..jobs.batch import LocalEngine

    make_runner = functools.partial(JobRunner, device=args.device, vram_gib=args.vram, keep=args.keep)
    if args.engine != RAY:
        return LocalEngine(make_runner(), progress.start, progress.step if progress.is_shown else None)
    from ..jobs.batch.distributed import RayEngine

    return RayEngine(
        make_runner,
        args.workers,
        tries=args.tries,
        timeout=args.timeout,
        address=args.ray_address,
        gpus=args.device is None,
        on_start=progress.start,
    )


def allow_files(workers: int) -> None:
    """Allow this process as many open files as there may be claims, one for each worker.

    Args:
        workers (`int`): How many workers there are.
    """
    try:
        import resource
    except ImportError:
        return
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = workers + 1024
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most)
        )


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM, which launchers and schedulers send, like an interruption: claims are given up."""

    def stop(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what a signal does.
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
