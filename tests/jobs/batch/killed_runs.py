"""Kills runs at random, and prints how often.

It runs in a process of its own because it forks, which a test's process with its locks and threads cannot do.
"""

import hashlib
import json
import multiprocessing
import random
import sys
import time
from types import SimpleNamespace

from PIL import Image

from diffusers_flux_ext.jobs.batch import LocalEngine, Run, read_entries, read_listed


COUNT, MOST_KILLS = 24, 8


class Runner:
    """Draws two images whose colour is that of the prompt, slowly, and notes what it draws."""

    def __init__(self, log):
        self.log = log

    def run(self, job, files, on_step=None):
        with self.log.open("a") as log:
            log.write(f"{job.call.prompt}\n")
        time.sleep(0.01)
        color = tuple(hashlib.sha256(job.call.prompt.encode()).digest()[:3])
        return SimpleNamespace(images=[Image.new("RGB", (64, 64), color)] * 2, seeds=[0, 0], seconds=0.0)


def draw(listed, out, log):
    Run(listed, out, lease=30.0, pause=0.05)(LocalEngine(Runner(log)))


def kill_runs(folder):
    """Runs the jobs as a whole, and others until no run is killed any more."""
    path = folder / "jobs.jsonl"
    jobs = [{"model": "tiny", "call": {"prompt": f"prompt {number}"}} for number in range(COUNT)]
    path.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    listed, rng, kills = read_listed(read_entries(path)), random.Random(0), 0
    context = multiprocessing.get_context("fork")

    def start(out):
        process = context.Process(target=draw, args=(listed, folder / out, folder / f"{out}.log"))
        process.start()
        return process

    start("whole").join()
    while True:
        # Two at a time; one of them, or both, are killed.
        processes = [start("out") for _ in range(2)]
        processes[0].join(rng.uniform(0.02, 0.15))
        if processes[0].is_alive() and kills < MOST_KILLS:
            kills += 1
            for process in processes[: 1 + kills % 2]:
                process.kill()
        for process in processes:
            process.join()
        if all(process.exitcode == 0 for process in processes):
            break
    sys.stdout.write(f"{kills}\n")
