"""Runs that are killed at any moment lose nothing and do nothing twice that was done."""

import json
import random
import time

import pytest

from benchmarks.support.processes import end_of, start_process
from diffusers_flux_ext.cli.main import main
from tests.jobs.batch.killed_runs import kill_runs


COUNT = 24


def images(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_processes_that_are_killed_at_random_lose_nothing(tmp_path):
    process = start_process(kill_runs, tmp_path, output=tmp_path / "printed.txt")
    code, printed = end_of(process, 300), (tmp_path / "printed.txt").read_text()
    assert code == 0, printed
    kills, out = int(printed.split()[-1]), tmp_path / "out"
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
    command, out = ["run", str(path), "--device", "cpu", "--out"], tmp_path / "out"
    assert main([*command, str(tmp_path / "whole")]) == 0
    for wanted in (1, 3):
        process = start_process(main, [*command, str(out)], output=tmp_path / "printed.txt")
        while process.is_alive() and len(list(out.glob("*.json"))) < wanted:
            time.sleep(0.01)
        end_of(process, rng.uniform(0, 0.3))
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.json")}
    last = start_process(main, [*command, str(out)], output=tmp_path / "printed.txt")
    code, printed = end_of(last, 900), (tmp_path / "printed.txt").read_text()
    assert code == 0, printed
    assert "6 done of 6" in printed
    assert all(file.stat().st_mtime_ns == changed for file, changed in before.items())
    whole = images(tmp_path / "whole")
    assert images(out) == whole
    assert len(whole) == 7
