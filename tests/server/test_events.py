"""Events from one thread to listeners."""

import asyncio
import threading

from diffusers_flux_ext.server.events import EventLog


def collect(log, last=None, pause=15.0):
    """Everything that a listener hears until the end."""

    async def listen():
        return [event async for event in log.listen(last, pause)]

    return asyncio.run(asyncio.wait_for(listen(), 20))


def test_a_late_listener_hears_everything_but_former_previews():
    log = EventLog()
    log.add("queued", position=0)
    log.add("preview", image="1")
    log.add("preview", image="2")
    log.add("done")
    assert [(event.name, event.data) for event in collect(log)] == [
        ("queued", {"position": 0}), ("preview", {"image": "2"}), ("done", {}),
    ]  # fmt: skip


def test_a_listener_goes_on_after_the_last_event_it_knows():
    log = EventLog()
    for step in range(3):
        log.add("step", step=step)
    log.add("done")
    first = collect(log)
    assert [event.data for event in collect(log, last=first[1].id)] == [{"step": 2}, {}]


def test_an_id_of_another_run_or_of_no_run_begins_anew():
    log = EventLog()
    log.add("done")
    for last in ("00000000-1", "x", "-", "", "²", f"{collect(log)[0].id}9999999999"):
        assert [event.name for event in collect(log, last=last)] == ["done"]


def test_events_of_another_thread_are_heard_as_they_come():
    log = EventLog()

    def tell():
        for step in range(50):
            log.add("step", step=step)
        log.add("done")

    threading.Timer(0.02, tell).start()
    assert [event.data.get("step") for event in collect(log)] == [*range(50), None]


def test_a_pause_is_told_and_listening_ends_when_the_log_closes():
    log = EventLog()
    threading.Timer(0.1, log.close).start()
    heard = collect(log, pause=0.02)
    assert heard
    assert set(heard) == {None}
    assert not log.is_heard
