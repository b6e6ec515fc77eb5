"""Claims on jobs by several processes."""

import os
import time

import pytest

from benchmarks.support.processes import start_process
from diffusers_flux_ext.jobs.batch.claims import SUFFIX, Claims


def hold(folder, lease):
    claims = Claims(folder, lease)
    print(claims.take("a"), flush=True)
    time.sleep(60)


@pytest.fixture
def held(tmp_path):
    """A claim of another process."""
    printed = tmp_path / "printed.txt"
    process = start_process(hold, tmp_path, 1.0, output=printed)
    while not (printed.exists() and printed.read_text()):
        assert process.is_alive()
        time.sleep(0.01)
    assert printed.read_text() == "True\n"
    yield process
    process.kill()
    process.join()


def test_a_claim_is_taken_once_and_given_up(tmp_path):
    one, other = Claims(tmp_path / "c", 60.0), Claims(tmp_path / "c", 60.0)
    assert one.taken() == set()
    assert one.take("a")
    assert not one.take("a")
    assert not other.take("a")
    assert other.take("b")
    assert one.taken() == {"a", "b"}
    one.release("a")
    assert other.take("a")
    other.release_all()
    assert one.taken() == set()


def test_a_claim_with_a_heartbeat_outlives_its_lease_and_that_of_a_dead_process_is_free_at_once(held, tmp_path):
    claims = Claims(tmp_path, 1.0)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert not claims.take("a")
        time.sleep(0.1)
    held.kill()
    held.join()
    assert claims.take("a")


def test_a_claim_of_a_machine_that_is_gone_is_taken_over_after_its_lease(held, tmp_path):
    path = tmp_path / f"a{SUFFIX}"
    text = path.read_text()
    held.kill()
    held.join()
    path.write_text(text.replace(os.uname().nodename, "elsewhere"))
    claims, start = Claims(tmp_path, 1.0), time.monotonic()
    while not claims.take("a"):
        assert time.monotonic() < start + 10
        time.sleep(0.1)
    assert time.monotonic() > start + 0.9
