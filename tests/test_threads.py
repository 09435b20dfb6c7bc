"""`for_each`: items shared by as many threads as BLAS has."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import types

import numpy as np
import pytest
import threadpoolctl

from culux.backends import threads
from culux.backends.threads import for_each


@pytest.fixture(params=[1, 2, 4])
def granted(request):
    with threadpoolctl.threadpool_limits(request.param, "blas"):
        yield request.param


def blas_threads():
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


class FakeBlas:
    """A BLAS whose limit is every thread's own, as on OpenMP, or the process's."""

    def __init__(self, count, per_thread):
        self.count, self.lib_controllers = count, [self]
        self.limited = threading.local() if per_thread else types.SimpleNamespace()

    @property
    def num_threads(self):
        return getattr(self.limited, "count", self.count)

    @contextlib.contextmanager
    def limit(self, limits):
        before, self.limited.count = self.num_threads, limits
        yield
        self.limited.count = before


def test_every_item_once(granted):
    done, workers, asked = [], [], []

    def items(count):
        asked.append(count)
        return range(100)

    for_each(items, lambda: workers.append(1) or done.append, 10)
    assert sorted(done) == list(range(100))
    assert len(workers) == granted
    assert asked == [granted]


@pytest.mark.parametrize("most", [-1, 0, 1, 2, 3])
def test_no_more_threads_than_the_work_is_worth(most):
    asked = []
    with threadpoolctl.threadpool_limits(4, "blas"):
        for_each(lambda count: asked.append(count) or "ab", lambda: lambda item: None, most)
    assert asked == [max(1, most)]


def test_blas_has_one_thread_meanwhile_and_the_old_number_after(granted):
    seen = []
    for_each(range, lambda: lambda _: seen.append(blas_threads()), 10)
    assert seen == [{1}] * granted
    assert blas_threads() == {granted}


@pytest.mark.parametrize("failing", ["worker", "item", "items"])
def test_errors_arrive_and_the_number_is_restored(granted, failing):
    def fail(what):
        if what == failing:
            raise FloatingPointError(what)

    def worker():
        fail("worker")
        return lambda _: fail("item")

    with pytest.raises(FloatingPointError, match=failing):
        for_each(lambda _: fail("items") or range(50), worker, 10)
    assert blas_threads() == {granted}
    done = []
    for_each(lambda _: range(50), lambda: done.append, 10)
    assert len(done) == 50


def test_an_error_in_another_thread_ends_the_work():
    caller, done, failed = threading.get_ident(), [], threading.Event()

    def work(item):
        if threading.get_ident() != caller:
            failed.set()
            raise ValueError("there")
        assert failed.wait(60)
        time.sleep(0.01)
        done.append(item)

    with threadpoolctl.threadpool_limits(2, "blas"), pytest.raises(ValueError, match="there"):
        for_each(lambda _: range(1000), lambda: work, 2)
    assert len(done) < 500


def test_threads_have_the_callers_error_state():
    seen = {}
    together = threading.Barrier(3, timeout=60)

    def work(_):
        together.wait()
        seen[threading.get_ident()] = np.geterr()["over"]

    with threadpoolctl.threadpool_limits(3, "blas"), np.errstate(over="raise"):
        for_each(range, lambda: work, 3)
    assert list(seen.values()) == ["raise"] * 3


def test_calls_wait_for_each_other(monkeypatch):
    """The second has as many threads as the first: not the one that the first leaves to BLAS."""
    running, most_running, counts = [], [], []

    def work(_):
        running.append(1)
        most_running.append(len(running))
        time.sleep(0.005)
        running.pop()

    def call():
        for_each(lambda count: counts.append(count) or range(4), lambda: work, 2)

    blas = FakeBlas(2, per_thread=False)
    monkeypatch.setattr(threads, "_blas", lambda: blas)
    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert blas.num_threads == 2
    assert counts == [2] * 4
    assert max(most_running) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    """Also one that is forked while another thread works."""
    held, free = threading.Event(), threading.Event()

    def hold(_):
        held.set()
        assert free.wait(60)

    blas = FakeBlas(2, per_thread=True)
    monkeypatch.setattr(threads, "_blas", lambda: blas)
    holder = threading.Thread(target=for_each, args=(lambda _: [0], lambda: hold, 2))
    holder.start()
    assert held.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(60)
        done = []
        for_each(lambda _: range(20), lambda: done.append, 2)
        os._exit(0 if sorted(done) == list(range(20)) else 1)
    free.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("per_thread", [False, True])
def test_blas_has_one_thread_in_every_thread(monkeypatch, per_thread):
    blas, seen, together = FakeBlas(3, per_thread), [], threading.Barrier(3, timeout=60)
    monkeypatch.setattr(threads, "_blas", lambda: blas)

    def work(_):
        together.wait()
        seen.append(blas.num_threads)
        together.wait()

    for_each(range, lambda: work, 3)
    assert seen == [1, 1, 1]
    assert blas.num_threads == 3


def test_one_thread_where_the_program_limits_blas_in_another():
    """threadpoolctl lets one thread at a time do so."""
    seen = []
    with threadpoolctl.threadpool_limits(3, "blas"):
        if not hasattr(threadpoolctl.OpenBLASController, "clear_controlling_thread"):
            pytest.skip("this threadpoolctl lets any")
        other = threading.Thread(target=for_each, args=(range, lambda: seen.append, 3))
        other.start()
        other.join()
    assert seen == [0]


def test_where_blas_cannot_be_told_the_caller_does_it_all(monkeypatch):
    class Unknown:
        lib_controllers = ()

    monkeypatch.setattr(threads, "_blas", Unknown)
    done = []
    for_each(range, lambda: done.append, 8)
    assert done == [0]
