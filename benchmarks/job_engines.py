"""What engines of `flux-ext run` cost, lose and repeat: random kills, throughput, overhead, and how they would scale.

Run from the repository's root, in one or several sections:

    python -m benchmarks.job_engines --jobs 2000 --kills 20
    python -m benchmarks.job_engines --sections overhead scaling
"""

import argparse
import functools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers.utils import logging

from benchmarks.support.job_runners import ColorRunner, NoiseRunner, NotingRunner
from benchmarks.support.scaling import Costs, simulate
from diffusers_flux_ext.jobs import JobRunner
from diffusers_flux_ext.jobs.batch import LocalEngine, Run, read_entries, read_listed
from diffusers_flux_ext.jobs.batch.claims import Claims
from diffusers_flux_ext.jobs.batch.distributed import RayEngine
from diffusers_flux_ext.jobs.batch.distributed.parcel import draw_parcel, pack


CALL = {"width": 128, "height": 128, "num_inference_steps": 2, "max_sequence_length": 32}
ACTOR = "ray::Worker"
# Enough for memory to be seen.
LISTED, CLAIMED = 5000, 500


def write_list(folder: Path, count: int) -> Path:
    """Write a list of jobs of the tiny model, which differ in their seeds and, a few, in their prompts."""
    path = folder / "jobs.jsonl"
    jobs = [
        {"model": "tiny", "call": {**CALL, "prompt": f"a red circle {seed % 8}, {seed}", "seed": seed}}
        for seed in range(count)
    ]
    path.write_text("".join(f"{json.dumps(job)}\n" for job in jobs), encoding="utf-8")
    return path


def own_workers() -> list[psutil.Process]:
    """Return the processes of actors on the Ray that this process started."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(each.cmdline()).startswith(ACTOR):
                found.append(each)
    return found


def kill_workers(stop: threading.Event, rng: random.Random, pauses: float, most: int, killed: list[int]) -> None:
    """Kill a worker, whatever it does, after random pauses, until it is enough."""
    while len(killed) < most and not stop.wait(rng.uniform(0.5, 1.5) * pauses):
        workers = sorted(own_workers(), key=lambda each: each.pid)
        if workers:
            chosen = rng.choice(workers)
            chosen.kill()
            killed.append(chosen.pid)


def chaos(count: int, kills: int, pause: float, make: Callable[[str], Any], workers: int) -> dict[str, Any]:
    """Draw a list while workers are killed at random, and count what was lost and what was drawn again."""
    with tempfile.TemporaryDirectory() as name:
        folder, stop, killed = Path(name), threading.Event(), list[int]()
        log = folder / "log"
        run = Run(read_listed(read_entries(write_list(folder, count))), folder / "out")
        killer = threading.Thread(target=kill_workers, args=(stop, random.Random(0), pause, kills, killed))
        killer.start()
        start, outcomes = time.perf_counter(), list[str]()
        engine = RayEngine(functools.partial(make, str(log)), workers, tries=9)
        lines = run(engine, lambda outcome: outcomes.append(outcome.work.name))
        stop.set()
        killer.join()
        drawn = log.read_text().splitlines()
        return {
            "jobs": count,
            "kills": len(killed),
            "done": sum(line["status"] == "done" for line in lines),
            "images": len(list((folder / "out").glob("*.png"))) - -(-count // 96),
            "results twice": len(outcomes) - len(set(outcomes)),
            "begun again": len(drawn) - len(set(drawn)),
            "seconds": time.perf_counter() - start,
        }


def timed(count: int, engine: Any) -> tuple[float, float]:
    """Return the seconds of a list with an engine from its first result on, and this process's own for each job."""
    with tempfile.TemporaryDirectory() as name:
        run = Run(read_listed(read_entries(write_list(Path(name), count))), Path(name) / "out")
        marks = list[tuple[float, float]]()
        run(engine, lambda outcome: marks.append((time.perf_counter(), time.process_time())))
        (begun, own_begun), (ended, own_ended) = marks[0], marks[-1]
        return (ended - begun) / (count - 1), (own_ended - own_begun) / (count - 1)


def throughput(count: int) -> list[tuple[str, float]]:
    """Return the jobs per second of each way of drawing, loading left out."""
    make = functools.partial(JobRunner, device="cpu")
    ways: dict[str, Any] = {"this process": LocalEngine(make())}
    ways |= {f"Ray, {workers} worker(s)": RayEngine(make, workers) for workers in (1, 2)}
    return [(name, 1 / timed(count, engine)[0]) for name, engine in ways.items()]


def file_operations(count: int) -> float:
    """Return how many files and folders are opened, made, renamed and removed for each job."""
    counted, folder = [0], tempfile.TemporaryDirectory()

    def count_one(event: str, given: Any) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "os.chmod"):
            counted[0] += folder.name in str(given[0]) if given else 0

    with folder:
        run = Run(read_listed(read_entries(write_list(Path(folder.name), count))), Path(folder.name) / "out")
        # It stays, and counts nothing once the folder is gone.
        sys.addaudithook(count_one)
        marks = list[int]()
        run(LocalEngine(ColorRunner()), lambda outcome: marks.append(counted[0]))
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def costs(count: int) -> Costs:
    """Measure what a job costs the process that hands out and writes."""
    _, ray_seconds = timed(count, RayEngine(NoiseRunner, 1))
    with tempfile.TemporaryDirectory() as name:
        path = write_list(Path(name), LISTED)
        memory = psutil.Process().memory_info().rss
        start = time.process_time()
        listed = read_listed(read_entries(path))
        read_seconds = (time.process_time() - start) / LISTED
        bytes_per_job = (psutil.Process().memory_info().rss - memory) / LISTED
        claims = Claims(Path(name) / "claims", 60.0)
        start = time.process_time()
        memory = psutil.Process().memory_info().rss
        for each in listed[:CLAIMED]:
            claims.take(each.name)
        claim_bytes = (psutil.Process().memory_info().rss - memory) / CLAIMED
        claim_seconds = (time.process_time() - start) / CLAIMED
        claims.release_all()
        assert listed[0].work is not None
        parcel = pack(listed[0].work)
    drawn = draw_parcel(NoiseRunner(), parcel)
    return Costs(
        driver_seconds=ray_seconds,
        read_seconds=read_seconds,
        job_bytes=bytes_per_job,
        claim_seconds=claim_seconds,
        claim_bytes=claim_bytes,
        sent_bytes=len(parcel.text),
        result_bytes=len(drawn["images"][0][0]),
        file_operations=file_operations(50),
    )


def show(rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    sys.stdout.write("| " + " | ".join(map(str, rows[0])) + " |\n" + "|---" * len(rows[0]) + "|\n")
    for row in rows[1:]:
        sys.stdout.write("| " + " | ".join(map(str, row)) + " |\n")
    sys.stdout.write("\n")
    sys.stdout.flush()


def show_scaling(found: Costs, job_seconds: float, jobs: int) -> None:
    """Print what one process would have to do for many cards."""
    rows: list[Sequence[Any]] = [
        ("cards", "jobs/s", "cards at work", "driver at work", "file operations/s", "results, MB/s", "driver, GiB")
    ]
    for cards in (8, 64, 512, 1024, 4096):
        each = simulate(cards, job_seconds, found.driver_seconds, jobs)
        rows.append(
            (
                cards,
                f"{each.rate:.1f}",
                f"{each.cards_busy:.1%}",
                f"{each.driver_busy:.0%}",
                f"{found.operations(cards, each.rate):.0f}",
                f"{each.rate * found.result_bytes / 1e6:.1f}",
                f"{found.memory(cards, 1_000_000) / 2**30:.1f}",
            )
        )
    show(rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("chaos", "quick-chaos", "throughput", "overhead", "scaling")
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of the run with kills (default: 2000)")
    parser.add_argument("--kills", type=int, default=20, help="workers that are killed (default: 20)")
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between kills, about (default: 10)")
    parser.add_argument("--timed", type=int, default=200, help="jobs of the other sections (default: 200)")
    parser.add_argument("--job-seconds", type=float, default=8.0, help="of a card, for the simulation (default: 8)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    # As this process, to compare them; Ray puts workers behind all others.
    os.environ.setdefault("RAY_worker_niceness", "0")
    runners: dict[str, Callable[[str], Any]] = {
        "chaos": NotingRunner, "quick-chaos": functools.partial(ColorRunner, seconds=0.05),
    }  # fmt: skip
    for section, make in runners.items():
        if section in args.sections:
            found = chaos(args.jobs, args.kills, args.pause, make, 2)
            show([list(found), [f"{value:.0f}" if isinstance(value, float) else value for value in found.values()]])
    if "throughput" in args.sections:
        rates = throughput(args.timed)
        show([("way", "jobs/s", "of this process"), *((n, f"{r:.2f}", f"{r / rates[0][1]:.2f}") for n, r in rates)])
    if {"overhead", "scaling"} & set(args.sections):
        found_costs = costs(args.timed)
        if "overhead" in args.sections:
            local = statistics.median(timed(args.timed, LocalEngine(NoiseRunner()))[1] for _ in range(3))
            alone = ("the same in one process, which encodes images as well, ms", f"{1000 * local:.1f}")
            show([("cost", "value"), *found_costs.rows(), alone])
        if "scaling" in args.sections:
            show_scaling(found_costs, args.job_seconds, 40_000)


if __name__ == "__main__":
    main()
