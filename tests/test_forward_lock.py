"""The lock around forward passes: who waits, and that nobody waits for ever."""

import copy
import pickle
import threading

import pytest
import torch

from diffusers_flux_ext._sharing import ForwardLock, guard_forward, in_loop, loop_key, one_thread, unguard_forward


WAIT = 30


def in_thread(work):
    """Runs `work` in a thread of its own, to its end."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive(), "the other thread waits"
    return results[0]


class Failing(torch.nn.Linear):
    error: type[BaseException] | None = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return super().forward(x)


@pytest.fixture
def layer():
    module = Failing(2, 2)
    guard_forward(module)
    return module


def test_a_failed_forward_pass_lets_others_through(layer):
    layer.error = ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        layer(torch.ones(1, 2))
    layer.error = None
    assert in_thread(lambda: layer(torch.ones(1, 2))).shape == (1, 2)


def test_an_interrupted_one_too_inside_of_the_context(layer):
    layer.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), one_thread(layer):
        layer(torch.ones(1, 2))
    layer.error = None
    assert in_thread(lambda: layer(torch.ones(1, 2))).shape == (1, 2)


def test_a_thread_that_died_with_the_lock_does_not_keep_it():
    lock = ForwardLock()
    in_thread(lock.acquire)
    lock.acquire()


def test_a_lock_of_two_features_goes_with_the_last(layer):
    guard_forward(layer)
    unguard_forward(layer)
    assert len(layer._forward_pre_hooks) == len(layer._forward_hooks) == 1
    unguard_forward(layer)
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks


def test_copies_and_pickles_have_locks_of_their_own(layer):
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with one_thread(layer):
            assert in_thread(lambda other=other: other(torch.ones(1, 2))).shape == (1, 2)


def test_loops_are_told_apart():
    key = object()
    assert loop_key() is threading.current_thread()
    with in_loop(key):
        assert loop_key() is key
        assert in_thread(loop_key) not in (key, threading.current_thread())
    assert loop_key() is threading.current_thread()
