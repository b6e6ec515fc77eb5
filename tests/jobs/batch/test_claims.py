"""Claims on jobs by several processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from diffusers_flux_ext.jobs.batch.claims import SUFFIX, Claims


HOLD = """
import sys, time
from pathlib import Path
from diffusers_flux_ext.jobs.batch.claims import Claims
claims = Claims(Path(sys.argv[1]), float(sys.argv[2]))
print(claims.take("a"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A claim of another process."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "1.0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


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
    held.send_signal(signal.SIGKILL)
    held.wait()
    assert claims.take("a")


def test_a_claim_of_a_machine_that_is_gone_is_taken_over_after_its_lease(held, tmp_path):
    path = tmp_path / f"a{SUFFIX}"
    text = path.read_text()
    held.kill()
    held.wait()
    path.write_text(text.replace(os.uname().nodename, "elsewhere"))
    claims, start = Claims(tmp_path, 1.0), time.monotonic()
    while not claims.take("a"):
        assert time.monotonic() < start + 10
        time.sleep(0.1)
    assert time.monotonic() > start + 0.9
