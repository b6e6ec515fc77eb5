"""What a job costs beside the plain call, and what grouping saves, with the embedded tiny model.

Run from the repository's root:

    python -m benchmarks.job_runs --jobs 24
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from diffusers_flux_ext import FluxConditionedPipeline, tiny_flux_path
from diffusers_flux_ext.jobs import JobFiles, JobRunner, read_job
from diffusers_flux_ext.jobs.batch import LocalEngine, Run, read_entries, read_listed
from diffusers_flux_ext.jobs.batch.grouping import grouped


CALL = {"width": 128, "height": 128, "num_inference_steps": 2, "max_sequence_length": 32}
LORAS = ("tiny_flux_eligen_lora.safetensors", "tiny_flux_style_lora.safetensors", "tiny_flux_size_lora.safetensors")


def job(prompt: str, seed: int, lora: str | None = None, dtype: str | None = None) -> dict[str, Any]:
    """Return a job's entries."""
    loras = [] if lora is None else [{"path": "tiny", "weight_name": lora}]
    model = {"path": "tiny"} if dtype is None else {"path": "tiny", "dtype": dtype}
    return {"model": model, "loras": loras, "call": {**CALL, "prompt": prompt, "seed": seed}}


def seconds(work: Callable[[], Any]) -> float:
    """Return the processor seconds of a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run_list(jobs: Sequence[dict[str, Any]], runner: JobRunner, folder: Path) -> None:
    """Run a list into a folder, as `flux-ext run` does."""
    path = folder / "jobs.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in jobs), encoding="utf-8")
    Run(read_listed(read_entries(path)), folder / "out")(LocalEngine(runner))


def overheads(count: int) -> list[tuple[str, float]]:
    """Return the milliseconds of a job in each way: medians, interleaved; the first of each is not counted."""
    pipe = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    runner = JobRunner(device="cpu")
    times: list[list[float]] = [[] for _ in range(4)]
    for seed in range(count + 1):
        # The same prompt: the plain call encodes it each time, and jobs once.
        entries = job("a red circle", seed)
        prompt = {"prompt": "a red circle", "generator": torch.Generator().manual_seed(seed)}
        times[0].append(seconds(partial(pipe, **prompt, **CALL)))
        times[1].append(seconds(partial(runner.run, read_job(entries), JobFiles())))
        other = read_job(job(f"a red circle {seed}", seed))
        times[2].append(seconds(partial(runner.run, other, JobFiles())))
        with tempfile.TemporaryDirectory() as folder:
            times[3].append(seconds(partial(run_list, [entries], runner, Path(folder))))
    names = ("plain call", "`JobRunner`, the same prompt again", "`JobRunner`, a new prompt", "`flux-ext run`, image, "
             "record and sheet written")  # fmt: skip
    return [(name, 1000 * statistics.median(each[1:])) for name, each in zip(names, times)]


def groupings(count: int) -> list[tuple[str, float, float]]:
    """Return the seconds of lists in their own order and grouped."""
    prompts = [f"a red circle {index}" for index in range(max(2, count // 6))]
    lists = {
        "two models in turn": [
            job(prompt, seed, dtype=dtype)
            for seed, (prompt, dtype) in enumerate(itertools.product(prompts, ("float32", "bfloat16")))
        ],
        "three LoRAs in turn": [
            job(prompt, seed, lora) for seed, (prompt, lora) in enumerate(itertools.product(prompts, LORAS))
        ],
    }
    found = []
    for name, entries in lists.items():
        jobs = [read_job(each) for each in entries]
        order = [each for group in grouped(jobs, lambda each: each.to_dict()) for each in group]
        taken = []
        for chosen in (jobs, order):
            runner = JobRunner(device="cpu")
            runner.run(chosen[0], JobFiles())
            taken.append(sum(seconds(partial(runner.run, each, JobFiles())) for each in chosen))
        found.append((f"{len(jobs)} jobs, {name}", taken[0], taken[1]))
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=24, help="jobs of each kind (default: 24)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = overheads(args.jobs)
    sys.stdout.write("| one job of 2 steps | ms | beside the plain call, ms |\n|---|---|---|\n")
    for name, taken in rows:
        sys.stdout.write(f"| {name} | {taken:.0f} | {taken - rows[0][1]:+.0f} |\n")
    sys.stdout.write("\n| list | in its order, s | grouped, s | ratio |\n|---|---|---|---|\n")
    for name, plain, together in groupings(args.jobs):
        sys.stdout.write(f"| {name} | {plain:.1f} | {together:.1f} | **{plain / together:.2f}** |\n")


if __name__ == "__main__":
    main()
