"""A real cluster of Ray, of several nodes on this machine: each job has exactly one result, and the same pixels."""

import functools
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.job_engines import own_workers
from benchmarks.support.job_runners import ColorRunner
from diffusers_flux_ext.jobs import JobRunner
from diffusers_flux_ext.jobs.batch import LocalEngine, Run, read_entries, read_listed
from tests.fixtures.documentation import ROOT


ray = pytest.importorskip("ray", reason="ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")
WAIT = 240


@pytest.fixture(scope="module")
def cluster():
    """A cluster of a head that only keeps the books, and of two nodes with two workers each."""
    with pytest.MonkeyPatch.context() as patch:
        # Nodes give it to the processes of actors.
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Other processes of a busy machine would leave nothing to workers, which Ray puts behind all others.
        patch.setenv("RAY_worker_niceness", "0")
        found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            found.add_node(num_cpus=2)
        ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
        yield found
        ray.shutdown()
        found.shutdown()


def engine(log=None, workers=2, make_runner=None, **options):
    from diffusers_flux_ext.jobs.batch.distributed import RayEngine

    return RayEngine(make_runner or functools.partial(ColorRunner, log and str(log)), workers, **options)


def write(folder, *prompts, **call):
    path = folder / "jobs.jsonl"
    jobs = [{"model": "tiny", "call": {"prompt": prompt, **call}} for prompt in prompts]
    path.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    return path


def start(path, **options):
    return Run(read_listed(read_entries(path)), path.parent / "out", pause=0.05, **options)


def images(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def check(folder, lines, log, count):
    """All is done, nothing is left over, and nothing that was done was drawn again."""
    assert [line["status"] for line in lines] == ["done"] * count
    assert len(list(folder.glob("*.png"))) == count + 1
    assert not list(folder.glob(".claims/*"))
    drawn = log.read_text().splitlines()
    assert len(set(drawn)) == count
    return len(drawn) - count


def wait_for(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_several_workers_draw_the_same_files_as_one_process(cluster, tmp_path):
    call = {"num_inference_steps": 2, "width": 64, "height": 64, "max_sequence_length": 8}
    path = write(tmp_path, *(f"a red circle {number}" for number in range(4)), **call)
    listed = read_listed(read_entries(path))
    Run(listed, tmp_path / "local")(LocalEngine(JobRunner(device="cpu")))
    lines = Run(listed, tmp_path / "out")(engine(make_runner=functools.partial(JobRunner, device="cpu")))
    assert [line["status"] for line in lines] == ["done"] * 4
    assert images(tmp_path / "out") == images(tmp_path / "local")


def test_workers_that_die_lose_nothing_and_poison_is_set_aside(cluster, tmp_path):
    path, log = write(tmp_path, *map(str, range(8)), "kill once it", "kill it"), tmp_path / "log"
    lines = start(path)(engine(log, tries=2))
    assert [line["status"] for line in lines] == ["done"] * 9 + ["failed"]
    assert "its workers ended or failed, 2 of them" in lines[-1]["message"]
    drawn = log.read_text().splitlines()
    assert (drawn.count("kill it"), drawn.count("kill once it")) == (2, 2)


def test_a_lost_node_and_two_drivers_give_one_result_each(cluster, tmp_path):
    path, log = write(tmp_path, *map(str, range(40))), tmp_path / "log"
    node, found = cluster.add_node(num_cpus=2), []
    runner = functools.partial(ColorRunner, str(log), seconds=0.2)

    def draw():
        found.append(start(path)(engine(make_runner=runner, workers=3)))

    drivers = [threading.Thread(target=draw) for _ in range(2)]
    for driver in drivers:
        driver.start()
    wait_for(lambda: len(list((tmp_path / "out").glob("*.json"))) >= 6)
    cluster.remove_node(node)
    for driver in drivers:
        driver.join(WAIT)
    assert found[0] == found[1]
    # A node draws at most as many jobs as it has workers when it is lost.
    assert check(tmp_path / "out", found[0], log, 40) <= 2


def test_a_driver_that_was_killed_goes_on(cluster, tmp_path):
    path, log, out = write(tmp_path, *map(str, range(12))), tmp_path / "log", tmp_path / "out"
    script = Path(__file__).with_name("ray_driver.py")
    command = [sys.executable, str(script), str(path), str(out), cluster.address, str(log), "0.2"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    wait_for(lambda: len(list(out.glob("*.json"))) >= 3)
    driver.kill()
    driver.wait()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.json")}
    assert len(before) < 12
    lines = start(path)(engine(log, workers=1))
    assert all(file.stat().st_mtime_ns == changed for file, changed in before.items())
    assert check(out, lines, log, 12) <= 1


@pytest.mark.slow
def test_workers_that_are_killed_at_random_lose_nothing(cluster, tmp_path):
    """About one worker in two seconds is killed, whatever it does."""
    path, log, rng, kills = write(tmp_path, *map(str, range(60))), tmp_path / "log", random.Random(0), 0
    found: list = []
    runner = functools.partial(ColorRunner, str(log), seconds=0.2)
    driver = threading.Thread(target=lambda: found.extend(start(path)(engine(make_runner=runner, tries=9))))
    driver.start()
    end = time.monotonic() + 120
    while driver.is_alive() and time.monotonic() < end and kills < 8:
        time.sleep(rng.uniform(0.5, 2.0))
        actors = sorted(own_workers(), key=lambda each: each.pid)
        if actors:
            rng.choice(actors).kill()
            kills += 1
    driver.join(WAIT)
    assert kills
    assert check(tmp_path / "out", found, log, 60) <= kills
