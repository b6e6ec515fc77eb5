"""Engines of `flux-ext run` from the command line."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from diffusers_flux_ext.cli import engines
from diffusers_flux_ext.cli.main import main
from tests.fixtures.documentation import ROOT


COMMAND = [sys.executable, "-m", "diffusers_flux_ext.cli.main", "run"]


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A list of four small jobs in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in (*engines.GROUP_VARIABLES, *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        monkeypatch.delenv(name, raising=False)
    call = {"num_inference_steps": 2, "width": 32, "height": 32, "max_sequence_length": 8}
    jobs = [{"model": "tiny", "call": {**call, "prompt": f"prompt {number}"}} for number in range(4)]
    (tmp_path / "jobs.jsonl").write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    return tmp_path


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workers", "2"], "--workers has no effect without --engine ray"),
        (["--ray-address", "auto"], "--ray-address has no effect without --engine ray"),
        (["--timeout", "5", "--engine", "accelerate"], "--timeout has no effect without --engine ray"),
        (["--engine", "ray", "--workers", "0"], "'0' is not a whole number from 1"),
        (["--engine", "ray", "--timeout", "0"], "'0' is not a finite number"),
        (["--tries", "0"], "'0' is not a whole number from 1"),
        (["--engine", "slurm"], "invalid choice"),
        (["--engine", "accelerate"], "accelerate launch --num_processes N"),
        (["--out", "nowhere://bucket/out"], "Protocol not known: nowhere"),
    ],
)
def test_wrong_flags_are_named_before_anything_is_drawn(listed, capsys, flags, message):
    try:
        code = main(["run", "jobs.jsonl", "--out", "out", *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (listed / "out").exists()


def test_ray_that_is_missing_is_named_with_the_command_that_installs_it(listed, capsys, monkeypatch):
    monkeypatch.setattr(engines, "missing", lambda names: list(names))
    assert main(["run", "jobs.jsonl", "--out", "out", "--engine", "ray"]) == 2
    assert "ray is missing: `pip install 'diffusers-flux-ext[jobs,ray]'`" in capsys.readouterr().err


@pytest.mark.parametrize("engine, device", [("ray", "cuda:1"), ("accelerate", "cuda:1")])
def test_a_device_of_all_processes_is_refused(listed, capsys, monkeypatch, engine, device):
    monkeypatch.setattr(engines, "missing", lambda names: [])
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["run", "jobs.jsonl", "--out", "out", "--engine", engine, "--device", device]) == 2
    assert f"--device {device}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "local_rank, kind, there, device",
    [
        (0, None, [], "cpu"),
        (1, None, ["cuda:0", "cuda:1"], "cuda:1"),
        (3, "cuda", ["cuda:0", "cuda:1"], "cuda:1"),
        (2, None, ["cuda:0"], "cuda:0"),
        (1, "cpu", ["cuda:0", "cuda:1"], "cpu"),
    ],
)
def test_processes_take_the_devices_in_turn(local_rank, kind, there, device):
    assert engines.device_of(local_rank, kind, there) == device


def test_no_process_group_is_left_to_wait_for(monkeypatch):
    for name in engines.GROUP_VARIABLES:
        monkeypatch.setenv(name, "1")
    args = argparse.Namespace(engine="accelerate", device="cpu", title="flux-ext run")
    engines.choose_device(args)
    assert (args.device, args.title) == ("cpu", "flux-ext run [1]")
    assert not any(name in os.environ for name in engines.GROUP_VARIABLES)


def test_lists_and_results_on_a_store(listed, capsys):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/cli/jobs.jsonl", (listed / "jobs.jsonl").read_bytes())
    assert main(["run", "memory://cli/jobs.jsonl", "--out", "memory://cli/out", "--device", "cpu"]) == 0
    assert "4 done of 4: memory://cli/out/results.jsonl" in capsys.readouterr().out
    assert main(["run", "memory://cli/jobs.jsonl", "--dry-run", "--out", "memory://cli/out"]) == 0
    assert capsys.readouterr().out.count(": done") == 4
    assert main(["run", "memory://cli/none.jsonl", "--out", "memory://cli/out"]) == 2
    memory.rm("/cli", recursive=True)


def images(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.mark.slow
def test_processes_of_a_launcher_share_a_list_and_one_may_be_killed(listed):
    assert main(["run", "jobs.jsonl", "--out", "whole", "--device", "cpu"]) == 0
    processes = []
    for rank in range(2):
        # A process group of two would wait for ever at an address where nobody is.
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "192.0.2.1"}
        environment = {**os.environ, **group, "MASTER_PORT": "1", "PYTHONPATH": str(ROOT)}
        command = [*COMMAND, "jobs.jsonl", "--out", "out", "--engine", "accelerate"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    out, end = listed / "out", time.monotonic() + 600
    while not list(out.glob("*.json")):
        assert time.monotonic() < end
        time.sleep(0.02)
    processes[0].kill()
    processes[0].wait()
    assert "4 done of 4" in processes[1].communicate(timeout=600)[0]
    assert images(out) == images(listed / "whole")
    assert not list(out.glob(".claims/*"))


@pytest.mark.slow
def test_accelerate_launch_draws_a_list(listed):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    command = [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", *COMMAND[2:], "jobs.jsonl", "--out"]
    done = subprocess.run(
        [*command, "out", "--engine", "accelerate"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 done of 4" in done.stdout


@pytest.mark.slow
def test_sigterm_gives_claims_up(listed):
    jobs = [json.loads(line) for line in (listed / "jobs.jsonl").read_text().splitlines()]
    jobs[0]["call"]["num_inference_steps"] = 5000
    (listed / "jobs.jsonl").write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    process = subprocess.Popen(
        [*COMMAND, "jobs.jsonl", "--out", "out", "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 600
    while not list((listed / "out").glob(".claims/*")):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert "interrupted" in process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert not [path for path in (listed / "out").rglob("*") if path.is_file()]
