"""Which models stay loaded."""

import threading

from diffusers_flux_ext.server.room import ModelRoom


SIZES = {"a": 4, "b": 4, "c": 4, "large": 20}


def room_of(budget):
    """A room, and the list of what it released."""
    released = []
    return ModelRoom(SIZES, budget, released.append), released


def test_models_that_fit_together_stay():
    room, released = room_of(8)
    for name in ("a", "b", "a"):
        with room.hold(name):
            pass
    assert (room.loaded, released) == (["b", "a"], [])


def test_the_least_recently_used_one_makes_room():
    room, released = room_of(8)
    for name in ("a", "b", "a", "c"):
        with room.hold(name):
            pass
    assert (room.loaded, released) == (["a", "c"], ["b"])


def test_a_model_larger_than_the_budget_draws_alone():
    room, released = room_of(8)
    for name in ("a", "b", "large"):
        with room.hold(name):
            pass
    assert (room.loaded, sorted(released)) == (["large"], ["a", "b"])


def test_without_a_budget_all_stay():
    room, released = room_of(None)
    for name in SIZES:
        with room.hold(name):
            pass
    assert (room.loaded, released) == (list(SIZES), [])


def test_a_model_waits_for_one_that_draws_and_leaves_no_room():
    room, released = room_of(8)
    entered = threading.Event()

    def draw():
        with room.hold("large"):
            entered.set()

    with room.hold("a"):
        thread = threading.Thread(target=draw)
        thread.start()
        assert not entered.wait(0.05)
        assert released == []
    assert entered.wait(10)
    thread.join(10)
    assert released == ["a"]


def test_a_model_that_failed_is_let_go():
    room, released = room_of(8)
    with room.hold("a"):
        pass
    room.forget("a")
    assert (room.loaded, released) == ([], ["a"])
