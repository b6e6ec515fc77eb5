"""Each job has one outcome, whatever its workers do; workers are threads here."""

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from benchmarks.support.job_runners import ColorRunner
from diffusers_flux_ext.jobs import JobFiles, read_job
from diffusers_flux_ext.jobs.batch.distributed import WorkersError, session
from diffusers_flux_ext.jobs.batch.distributed.crew import Crew
from diffusers_flux_ext.jobs.batch.distributed.parcel import draw_parcel
from diffusers_flux_ext.jobs.batch.distributed.session import Session
from diffusers_flux_ext.jobs.batch.distributed.worker import versions
from diffusers_flux_ext.jobs.batch.engine import Work


class Died(Exception):
    """Stands for the errors of Ray."""


class Actor:
    """Stands for an actor: answers in a thread; dies for `die`, is silent for `hang`, `gone`; breaks for `break`."""

    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.about, self.draw = (SimpleNamespace(remote=each) for each in (self._about, self._draw))

    def _about(self):
        return self._later(lambda: self.cluster.about(self.number))

    def _draw(self, parcel):
        return self._later(lambda: self.cluster.draw(self.number, parcel))

    def _later(self, work):
        future = Future()

        def answer():
            try:
                value = work()
            except Died as error:
                future.set_exception(error)
            else:
                if value is not None:
                    future.set_result(value)

        threading.Thread(target=answer, daemon=True).start()
        return SimpleNamespace(future=lambda: future)


class Cluster:
    """What actors do, and what was asked of them."""

    def __init__(self):
        self.started, self.killed, self.drawn = [], [], []
        self.gone, self.starts, self.versions = set(), True, versions()
        self.times = {}

    def make(self):
        self.started.append(Actor(self, len(self.started)))
        return self.started[-1]

    def about(self, number):
        if not self.starts:
            raise Died("cannot import")
        return {"node": f"node-{number}", "host": "here", "process": number, "versions": self.versions}

    def draw(self, number, parcel):
        prompt = read_job(parcel.text).call.prompt
        self.drawn.append(prompt)
        word, _, times = prompt.partition(" ")
        self.times[prompt] = self.times.get(prompt, 0) + 1
        if times.isdigit() and self.times[prompt] > int(times):
            word = ""
        if word == "die":
            raise Died("the actor died")
        if word == "gone":
            self.gone.add(f"node-{number}")
        if word in ("hang", "gone"):
            return None
        if word == "break":
            return {"error": {"error": "AcceleratorError", "message": "", "problems": []}, "broken": True}
        if word == "slow":
            time.sleep(0.3)
        return draw_parcel(ColorRunner(size=4), parcel)

    def nodes(self):
        return {f"node-{actor.number}" for actor in self.started} - self.gone


@pytest.fixture
def cluster():
    return Cluster()


def works(*prompts):
    jobs = [read_job({"model": "tiny", "call": {"prompt": prompt}}) for prompt in prompts]
    return [Work(job.call.prompt, job.digest(), job.call.prompt, job, JobFiles()) for job in jobs]


def run(cluster, work, workers=2, tries=3, timeout=None):
    outcomes = []
    crew = Crew(cluster.make, cluster.killed.append, workers)
    Session(crew, work, outcomes.append, tries, timeout, cluster.nodes).run()
    names = [outcome.work.name for outcome in outcomes]
    assert len(names) == len(set(names))
    return {outcome.work.name: outcome for outcome in outcomes}


def test_all_is_drawn_once(cluster):
    names = [f"slow {index}" for index in range(5)]
    found = run(cluster, works(*names))
    assert sorted(cluster.drawn) == sorted(found) == names
    assert all(outcome.result.images for outcome in found.values())
    assert len(cluster.started) == 2


def test_a_job_whose_worker_dies_goes_to_another_one(cluster):
    found = run(cluster, works("a", "die 1", "b"))
    assert found["die 1"].result is not None
    assert cluster.drawn.count("die 1") == 2
    assert len(cluster.started) == 3


def test_a_job_that_ends_its_workers_is_set_aside(cluster):
    found = run(cluster, works("die", "a", "b", "c"), workers=1)
    assert cluster.drawn.count("die") == 3
    assert "its workers ended or failed, 3 of them; the last one: the actor died" in str(found["die"].error)
    assert all(found[name].result is not None for name in "abc")


def test_the_number_of_tries_is_a_choice(cluster):
    run(cluster, works("die"), tries=1)
    assert cluster.drawn == ["die"]


def test_an_error_is_tried_again_and_then_told(cluster):
    found = run(cluster, works("raise it", "a"))
    assert cluster.drawn.count("raise it") == 3
    assert found["raise it"].error.record["message"] == "out of luck"
    assert len(cluster.started) == 2


def test_a_worker_whose_accelerator_failed_is_replaced(cluster):
    found = run(cluster, works("break 1", "a"), workers=1)
    assert found["break 1"].result is not None
    assert len(cluster.started) == 2
    assert cluster.started[0] in cluster.killed


def test_a_worker_that_takes_too_long_is_ended_and_its_late_answer_is_not_heard(cluster):
    found = run(cluster, works("hang 1", "a"), timeout=0.5)
    assert found["hang 1"].result is not None
    assert len(cluster.started) == 3


def test_an_answer_that_was_lost_with_its_node_is_not_waited_for(cluster, monkeypatch):
    monkeypatch.setattr(session, "LOOK", 0.1)
    found = run(cluster, works("gone 1", "a"))
    assert found["gone 1"].result is not None


def test_a_job_whose_input_is_gone_fails_alone(cluster):
    missing = read_job(
        {"model": "tiny", "conditions": [{"type": "ReferenceImages", "images": "none.png"}], "call": {"prompt": "x"}}
    )
    found = run(cluster, [*works("a"), Work("x", "digest", "x", missing, JobFiles()), *works("b")])
    assert "does not exist" in str(found["x"].error)
    assert sorted(cluster.drawn) == ["a", "b"]


def test_what_is_drawn_is_reported_while_other_processes_hold_the_rest(cluster):
    reported = threading.Event()

    def others():
        yield works("a")[0]
        end = time.monotonic() + 20
        while not reported.is_set():
            assert time.monotonic() < end
            time.sleep(0.01)
            yield None
        yield works("b")[0]

    crew = Crew(cluster.make, cluster.killed.append, 2)
    outcomes = []
    Session(crew, others(), lambda outcome: (outcomes.append(outcome), reported.set()), 3, None, cluster.nodes).run()
    assert [outcome.work.name for outcome in outcomes] == ["a", "b"]


def test_workers_that_never_start_are_given_up(cluster):
    cluster.starts = False
    with pytest.raises(WorkersError, match="no worker can be started; the last one: cannot import"):
        run(cluster, works("a"))
    assert len(cluster.started) < 10


def test_workers_with_other_versions_are_refused(cluster):
    cluster.versions = {**versions(), "torch": "0.1"}
    with pytest.raises(WorkersError, match="process 0 of here has other versions"):
        run(cluster, works("a"), workers=1)
