"""Seeded broken files given to all readers, a short form of `python -m benchmarks.fuzz_files`; and its judge."""

import os
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzzing import judge, work
from benchmarks.fuzzing.judge import FINE, Bench
from benchmarks.fuzzing.mutations import mutate
from benchmarks.fuzzing.reader import Reader
from tests.fixtures.sampling import share_of


# Those that load or plan whole pipelines take too long here.
READERS = {name: reader for name, reader in work.all_readers().items() if not name.startswith(("generate", "plan"))}


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    made = {}

    def bench(name):
        if name not in made:
            made[name] = Bench(READERS[name], tmp_path_factory.mktemp("bench"))
        return made[name]

    return bench


@pytest.mark.slow
@given(name=st.sampled_from(sorted(READERS)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=share_of(250), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_broken_files_are_read_or_refused_by_name(benches, name, seed):
    verdict = benches(name).try_seed(seed)
    assert verdict.outcome in FINE, f"{name} --case {seed} [{verdict.mutation}]: {verdict}"


def test_a_seed_gives_one_file(benches):
    bench = benches("redux")
    files = [mutate(bench.valid, bench.path, seed) for seed in range(40)]
    assert files == [mutate(bench.valid, bench.path, seed) for seed in range(40)]
    assert len({data for data, _ in files}) > 30


def build(folder):
    (folder / "x.json").write_text('{"a": 1}')
    return folder / "x.json"


def spin():
    while True:
        pass


def library_error(path, target):
    torch.zeros(2).view(3)


def leave(path, target):
    target.write_text("half")
    raise OSError(f"{path}")


def fill(path, target):
    return len(bytearray(300 * 2**20)) and None


OUTCOMES = {
    "foreign": library_error,
    "unnamed": lambda path, target: judge.Path("absent").read_text(),
    "left over": leave,
    "memory": fill,
    "hang": lambda path, target: spin(),
    "refused": lambda path, target: path.with_name("x.json.absent").read_text(),
    "read": lambda path, target: None,
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_judge_sees(tmp_path, outcome, monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 1)
    bench = Bench(Reader(outcome, build, OUTCOMES[outcome]), tmp_path)
    assert bench.try_seed(1).outcome == outcome


def test_processes_that_die_or_wait_are_findings(monkeypatch):
    monkeypatch.setattr(work, "PATIENCE", 2)

    def die(path, target):
        if path.read_bytes() != b'{"a": 1}':
            os._exit(1)

    def wait(path, target):
        if path.read_bytes() != b'{"a": 1}':
            time.sleep(100)

    for call in (die, wait):
        found = dict(work.try_files(Reader("dies", build, call), [1, 2]))
        assert [found[seed].outcome for seed in (1, 2)] == ["crash", "crash"]
