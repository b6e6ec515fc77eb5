"""A job that ends its process again and again does not end a run for ever."""

import json
import signal
import subprocess
import sys

import pytest

from benchmarks.support.job_runners import ColorRunner
from diffusers_flux_ext.jobs.batch import LocalEngine, Run, read_entries, read_listed
from tests.fixtures.documentation import ROOT


DRAW = """
import sys
from benchmarks.support.job_runners import ColorRunner
from diffusers_flux_ext.jobs.batch import LocalEngine, Run, read_entries, read_listed
Run(read_listed(read_entries(sys.argv[1])), sys.argv[2], tries=1)(LocalEngine(ColorRunner()))
"""


HOLD = """
import os, sys
from pathlib import Path
from diffusers_flux_ext.jobs.batch.claims import Claims
claims = Claims(Path(sys.argv[1]), 60.0)
claims.take(sys.argv[2])
os.kill(os.getpid(), 9)
"""


def write(folder, *prompts):
    path = folder / "jobs.jsonl"
    jobs = [{"model": "tiny", "call": {"prompt": prompt}} for prompt in prompts]
    path.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    return path


def start(path, **options):
    return Run(read_listed(read_entries(path)), path.parent / "out", pause=0.02, **options)


class Ends(BaseException):
    """Stands for the end of a process: nothing is tidied up."""


class Runner(ColorRunner):
    """Ends for the prompt `end`, and is interrupted for `stop`."""

    def run(self, job, files, on_step=None):
        if job.call.prompt == "end":
            raise Ends
        if job.call.prompt == "stop":
            raise KeyboardInterrupt
        return super().run(job, files)


def end(path, **options):
    """Begin the job that ends its process, and leave behind what a process leaves that is killed."""
    run = start(path, **options)
    run._ledger.give_up = run._ledger.claims.release_all
    with pytest.raises(Ends):
        run(LocalEngine(Runner()))


def test_a_job_that_ends_its_processes_is_set_aside_and_can_be_retried(tmp_path):
    path = write(tmp_path, "end", "a")
    for _ in range(2):
        end(path, tries=2)
    lines = start(path, tries=2)(LocalEngine(Runner()))
    assert [line["status"] for line in lines] == ["failed", "done"]
    assert "2 processes ended while they drew it" in lines[0]["message"]
    assert not list((tmp_path / "out").glob(".*.starts"))
    # Tried again on demand, from the beginning.
    end(path, tries=2, retry_failed=True)


def test_a_process_that_is_killed_after_it_wrote_leaves_nothing_for_ever(tmp_path):
    path = write(tmp_path, "a", "b")
    lines = start(path, tries=2)(LocalEngine(Runner()))
    out, name = tmp_path / "out", lines[0]["name"]
    ended = subprocess.Popen([sys.executable, "-c", HOLD, str(out / ".claims"), name], cwd=ROOT)
    ended.wait()
    (out / f".{name}.starts").write_text("1")
    assert list(out.glob(".claims/*"))
    start(path, tries=2)(LocalEngine(Runner()))
    assert not [*out.glob(".claims/*"), *out.glob(".*.starts")]


def test_an_interruption_does_not_count(tmp_path):
    path = write(tmp_path, "stop", "a")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            start(path, tries=1)(LocalEngine(Runner()))
    assert not list((tmp_path / "out").glob(".*.starts"))


def test_what_is_drawn_leaves_no_note(tmp_path):
    start(write(tmp_path, "a", "raise it"), tries=3)(LocalEngine(Runner()))
    assert not list((tmp_path / "out").glob(".*.starts"))


@pytest.mark.slow
def test_a_process_that_is_killed_by_its_job(tmp_path):
    path = write(tmp_path, "kill it", "a")
    command = [sys.executable, "-c", DRAW, str(path), str(tmp_path / "out")]
    codes = [subprocess.run(command, cwd=ROOT, timeout=300).returncode for _ in range(2)]
    assert codes == [-signal.SIGKILL, 0]
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["failed", "done"]
