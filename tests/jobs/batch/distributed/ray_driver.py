"""A program that draws a list on a Ray cluster: `python ray_driver.py LIST FOLDER ADDRESS LOG SECONDS`."""

import functools
import sys

from benchmarks.support.job_runners import ColorRunner
from diffusers_flux_ext.jobs.batch import Run, read_entries, read_listed
from diffusers_flux_ext.jobs.batch.distributed import RayEngine


if __name__ == "__main__":
    source, out, address, log, seconds = sys.argv[1:]
    runner = functools.partial(ColorRunner, log, seconds=float(seconds))
    Run(read_listed(read_entries(source)), out)(RayEngine(runner, workers=1, address=address))
