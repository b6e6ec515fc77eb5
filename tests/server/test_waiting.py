"""The queue's order."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusers_flux_ext.server.waiting import FairQueue, QueueFull


def put(queue, *jobs, model="m"):
    """Let jobs wait; the letter of each names its client. Return the positions that were announced."""
    positions = []
    for job in jobs:
        queue.put(job, model, job[0], positions.append)
    return positions


def test_clients_take_turns_and_each_keeps_its_order():
    queue = FairQueue(10)
    assert put(queue, "a1", "a2", "a3", "b1", "c1", "c2") == [0, 1, 2, 1, 2, 4]
    assert [queue.take("m") for _ in range(6)] == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_client_that_comes_late_is_served_before_the_rest_of_a_long_list():
    queue = FairQueue(100)
    put(queue, *(f"a{index}" for index in range(50)))
    assert queue.take("m") == "a0"
    put(queue, "b0")
    assert [queue.take("m") for _ in range(2)] == ["a1", "b0"]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(0, 11))
def test_a_position_is_the_number_of_jobs_that_are_taken_before(clients, taken):
    queue = FairQueue(100)
    jobs = [f"{client}{index}" for index, client in enumerate(clients)]
    put(queue, *jobs)
    for _ in range(min(taken, len(jobs) - 1)):
        queue.take("m")
    told = {job: queue.position(job) for job in jobs}
    order = [queue.take("m") for _ in range(len(queue))]
    assert {job: position for job, position in told.items() if position is not None} == {
        job: index for index, job in enumerate(order)
    }


def test_models_have_queues_of_their_own_under_one_limit():
    queue = FairQueue(2)
    put(queue, "a1", model="m")
    put(queue, "a2", model="n")
    with pytest.raises(QueueFull):
        put(queue, "b1", model="n")
    assert queue.take("n") == "a2"
    assert queue.position("a1") == 0


def test_what_a_restart_brings_back_may_exceed_the_limit():
    queue = FairQueue(1)
    put(queue, "a1")
    queue.put("a2", "m", "a", lambda position: None, beyond=True)
    assert len(queue) == 2


def test_a_job_that_is_removed_is_never_taken():
    queue = FairQueue(10)
    put(queue, "a1", "a2", "b1")
    assert queue.remove("a1")
    assert not queue.remove("a1")
    assert queue.position("a1") is None
    assert [queue.take("m") for _ in range(2)] == ["a2", "b1"]


def test_those_who_wait_for_a_job_get_none_when_the_queue_closes():
    queue, taken = FairQueue(10), []
    thread = threading.Thread(target=lambda: taken.append(queue.take("m")))
    thread.start()
    queue.close()
    thread.join(10)
    assert taken == [None]


def test_many_threads_take_every_job_once():
    queue, taken = FairQueue(1000), []

    def work():
        while (job := queue.take("m")) is not None:
            taken.append(job)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    jobs = [f"{'abc'[index % 3]}{index}" for index in range(300)]
    put(queue, *jobs)
    while len(queue):
        pass
    queue.close()
    for thread in threads:
        thread.join(10)
    assert sorted(taken) == sorted(jobs)
