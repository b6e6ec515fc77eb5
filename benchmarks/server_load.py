"""Load of `flux-ext serve` with the tiny model: requests per second, latency, memory, and whether any job is mixed up.

Run from the repository's root. The server runs in a process of its own; every image is compared with the one that the
job runner draws from the same seed here:

    python -m benchmarks.server_load --clients 1 8 32 --requests 64
    python -m benchmarks.server_load --jobs 10000
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from itertools import repeat
from typing import Any

import httpx2 as httpx
import psutil
from PIL import Image

from diffusers_flux_ext.jobs import JobRunner, read_job
from diffusers_flux_ext.tiny import TINY, TINY_CALL


SEEDS = 16
SECONDS = 600.0
MIB = 2**20


def job(seed: int) -> dict[str, Any]:
    """Return a job of 2 steps and 128 x 128 pixels."""
    call = {**TINY_CALL, "num_inference_steps": 2, "prompt": "a white background", "seed": seed}
    return {"model": {"path": TINY}, "call": call}


def expected_images() -> list[str]:
    """Return digests of the pixels of each seed, as drawn without a server."""
    runner = JobRunner(device="cpu")
    return [digest(runner.run(read_job(job(seed))).images[0]) for seed in range(SEEDS)]


def digest(image: Image.Image) -> str:
    """Return the SHA-256 of an image's pixels."""
    return sha256(image.convert("RGB").tobytes()).hexdigest()


@contextmanager
def server(queue: int, keep: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server; yield its address and its process."""
    with tempfile.TemporaryDirectory() as state:
        command = [
            sys.executable, "-m", "diffusers_flux_ext.cli.main", "serve", "--model", TINY, "--device", "cpu", "--port",
            "0", "--state", state, "--queue", str(queue), "--keep-jobs", str(keep),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            yield line.split()[2], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def draw(client: httpx.Client, seed: int, name: str) -> tuple[str, float]:
    """Submit a job, follow it to its end, and return its id and the seconds that took."""
    begun = time.perf_counter()
    while (answer := client.post("/api/jobs", json=job(seed), headers={"X-Client-Id": name})).status_code == 429:
        time.sleep(float(answer.headers["Retry-After"]))
    found = answer.raise_for_status().json()["id"]
    with client.stream("GET", f"/api/jobs/{found}/events") as events:
        if not any(line == "event: done" for line in events.iter_lines()):
            raise RuntimeError(f"Job {found} did not end well.")
    return found, time.perf_counter() - begun


def check(client: httpx.Client, found: str, seed: int, expected: Sequence[str]) -> None:
    """Raise unless a job's record and pixels are those of its seed."""
    record = client.get(f"/api/jobs/{found}").json()
    image = Image.open(BytesIO(client.get(record["images"][0]["url"]).content))
    if record["job"]["call"]["seed"] != seed or digest(image) != expected[seed % SEEDS]:
        raise RuntimeError(f"Job {found} has another image than its seed {seed} draws.")


def measure(client: httpx.Client, clients: int, requests: int, expected: Sequence[str]) -> tuple[float, list[float]]:
    """Draw with some clients at once; return jobs per second and each job's seconds."""
    seeds = [index % SEEDS for index in range(requests)]
    names = [f"client {index % clients}" for index in range(requests)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        drawn = list(pool.map(draw, repeat(client), seeds, names))
    rate = requests / (time.perf_counter() - begun)
    for (found, _), seed in zip(drawn, seeds, strict=True):
        check(client, found, seed, expected)
    return rate, [seconds for _, seconds in drawn]


def say(line: str) -> None:
    """Write a line at once, since a run takes long."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def latency_table(client: httpx.Client, counts: Sequence[int], requests: int, expected: Sequence[str]) -> None:
    """Print a row for each number of clients."""
    say("| clients | jobs | jobs per second | median, s | 95 %, s |\n|---:|---:|---:|---:|---:|")
    for clients in counts:
        rate, seconds = measure(client, clients, requests, expected)
        late = statistics.quantiles(seconds, n=20)[-1]
        say(f"| {clients} | {requests} | {rate:.2f} | {statistics.median(seconds):.2f} | {late:.2f} |")


def soak(client: httpx.Client, process: psutil.Process, jobs: int, expected: Sequence[str]) -> None:
    """Draw many jobs, and print memory by the way and what became of them."""
    say("| jobs | server's memory, MiB | jobs per second so far |\n|---:|---:|---:|")
    begun, done, step, before = time.perf_counter(), 0, max(1, jobs // 8), count_done(client)
    while done < jobs:
        count = min(step, jobs - done)
        measure(client, min(8, count), count, expected)
        done += count
        rate = done / (time.perf_counter() - begun)
        say(f"| {done} | {process.memory_info().rss / MIB:.0f} | {rate:.2f} |")
    lost = jobs - (count_done(client) - before)
    say(f"\n{jobs} jobs, {lost} lost, none mixed up: each image is bit-equal to the one drawn without a server.")


def count_done(client: httpx.Client) -> int:
    """Return how many jobs are done, by the pages of the list."""
    total, before = 0, None
    while True:
        params: dict[str, str | int] = {"status": "done", "limit": 200, **({"before": before} if before else {})}
        page = client.get("/api/jobs", params=params).json()["jobs"]
        total += len(page)
        if not page:
            return total
        before = page[-1]["id"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="*", default=[], help="numbers of clients to measure latency at")
    parser.add_argument("--requests", type=int, default=64, help="jobs for each number of clients (default: 64)")
    parser.add_argument("--jobs", type=int, default=0, help="jobs of the long run, which watches memory")
    args = parser.parse_args()
    expected = expected_images()
    keep = args.jobs + args.requests * len(args.clients) + 100
    with server(100, keep) as (address, process), httpx.Client(base_url=address, timeout=SECONDS) as client:
        measure(client, 1, 8, expected)
        say(f"Server's memory after 8 jobs: {process.memory_info().rss / MIB:.0f} MiB\n")
        if args.clients:
            latency_table(client, args.clients, args.requests, expected)
        if args.jobs:
            soak(client, process, args.jobs, expected)


if __name__ == "__main__":
    main()
