"""Runs that are killed at any moment lose nothing and do nothing twice that was done."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


COUNT = 24


def images(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_processes_that_are_killed_at_random_lose_nothing(tmp_path):
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills, out = int(done.stdout), tmp_path / "out"
    assert kills
    assert images(out) == images(tmp_path / "whole")
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done"] * COUNT
    drawn = (tmp_path / "out.log").read_text().splitlines()
    assert set(drawn) == {f"prompt {number}" for number in range(COUNT)}
    # A process that is killed draws one job at that moment.
    assert len(drawn) <= COUNT + 2 * kills
    assert not list(out.glob(".claims/*.claim"))
    assert not list(out.glob("*.error.json"))


@pytest.mark.slow
def test_the_command_goes_on_after_it_was_killed(tmp_path):
    path, rng = tmp_path / "jobs.jsonl", random.Random(1)
    call = {"num_inference_steps": 2, "width": 32, "height": 32, "max_sequence_length": 8}
    jobs = [{"model": "tiny", "call": {**call, "prompt": f"prompt {number}"}} for number in range(6)]
    path.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    command = [sys.executable, "-m", "diffusers_flux_ext.cli.main", "run", str(path), "--device", "cpu", "--out"]
    done = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    for wanted in (1, 3):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("*.json"))) < wanted:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.json")}
    done = subprocess.run([*command, str(out)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "6 done of 6" in done.stdout
    assert all(file.stat().st_mtime_ns == changed for file, changed in before.items())
    whole = images(tmp_path / "whole")
    assert images(out) == whole
    assert len(whole) == 7
