"""The autotuner: what it picks, and when it picks nothing."""

from __future__ import annotations

import threading

import pytest

from culux.backends import get_backend
from culux.errors import DeviceError, KernelError
from culux.kernels import records, tuning
from tests.tuning_support import DEVICE, FakeTimer, choose, failing, fixed, forget
from tests.tuning_support import cache as cache

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("winner", ["plain", "fused", "split"])
def test_the_fastest_wins(winner):
    times = {"plain": 30.0, "fused": 20.0, "split": 25.0, winner: 10.0}
    assert choose(fixed(**times)) == winner
    (record,) = records.load_all()
    assert (record.operation, record.key, record.device) == ("dense", (128, 512, "float32"), DEVICE)
    assert (record.winner, record.default, record.failed) == (winner, "plain", {})
    assert record.times == pytest.approx(times)
    assert record.versions == {"culux": "0.1.0", "cuda": "12.9", "driver": "12.9"}
    others = sorted(time for name, time in times.items() if name != winner)
    assert record.gain == pytest.approx(1 - 10 / times["plain"])
    assert record.margin == pytest.approx(1 - 10 / others[0])


@pytest.mark.parametrize(("plain", "winner"), [(10.19, "plain"), (10.21, "fused"), (9.0, "plain")])
def test_the_default_wins_ties(plain, winner):
    assert choose(fixed(fused=10.0, plain=plain)) == winner


def test_a_tie_of_others_goes_to_the_faster_one():
    assert choose(fixed(plain=20.0, a=10.1, b=10.0)) == "b"


def test_outliers_do_not_count():
    calls = iter(range(10_000))

    def noisy():
        return 50_000.0 if next(calls) % 4 == 3 else 600.0

    assert choose({"plain": lambda: 1000.0, "noisy": noisy}) == "noisy"
    assert records.load_all()[0].times["noisy"] == 600.0


def test_the_calls_before_the_rounds_do_not_count():
    times = iter([1e6, 5.0] + [10.0] * 10_000)
    timer = FakeTimer()
    assert choose({"plain": lambda: 20.0, "compiled": lambda: next(times)}, timer=timer) == "compiled"
    assert records.load_all()[0].times["compiled"] == 10.0


def test_samples_are_long_enough_and_not_too_long():
    short, long, timer = [], [], FakeTimer()
    choose({"plain": lambda: short.append(1) or 50.0, "slow": lambda: long.append(1) or 1e6}, timer=timer)
    assert len(short) == 1 + 8 * 10
    assert len(long) == 1 + 8
    assert timer.samples == [1, 1] + [10, 1, 1, 10] * 4


def test_the_second_call_is_one_look_up(monkeypatch):
    candidates = fixed(plain=20.0, fused=10.0)
    assert choose(candidates) == "fused"
    monkeypatch.setattr(tuning, "_pick", failing(AssertionError))
    assert choose(candidates) == "fused"


def test_operations_keys_and_devices_are_apart():
    assert choose(fixed(plain=20.0, fused=10.0)) == "fused"
    assert choose(fixed(plain=10.0, fused=20.0), operation="dense backward") == "plain"
    assert choose(fixed(plain=10.0, fused=20.0), key=(128, 256, "float32")) == "plain"
    other = tuning.choose(
        "dense", (128, 512, "float32"), fixed(plain=1.0, fused=2.0), "plain", device="Other GPU", timer=FakeTimer()
    )
    assert other == "plain"
    assert choose(fixed(plain=20.0, fused=10.0)) == "fused"


@pytest.mark.parametrize("error", [KernelError("too much shared memory\nlog"), MemoryError("out of memory")])
@pytest.mark.parametrize("bad", ["plain", "fused"])
def test_a_candidate_that_fails_is_left_out(error, bad):
    candidates = fixed(plain=20.0, fused=30.0, split=25.0) | {bad: failing(error)}
    assert choose(candidates) == {"plain": "split", "fused": "plain"}[bad]
    (record,) = records.load_all()
    assert record.failed == {bad: f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    assert bad not in record.times
    assert (record.gain is None) == (bad == "plain")


def test_a_candidate_that_fails_later_is_left_out():
    calls = iter([1.0] * 5)

    def late():
        return next(calls, None) or failing(MemoryError("full"))()

    assert choose({"plain": lambda: 20.0, "late": late}) == "plain"
    assert records.load_all()[0].failed == {"late": "MemoryError: full"}


def test_where_all_fail_the_error_is_the_defaults(cache):
    candidates = {"other": failing(KernelError("of the other")), "plain": failing(MemoryError("of the default"))}
    with pytest.raises(MemoryError, match="of the default"):
        choose(candidates)
    with pytest.raises(KernelError, match="of the other"):
        choose(candidates, "other")
    assert not list(cache.glob("*.json"))
    assert choose(fixed(plain=2.0, other=1.0)) == "other"


def test_an_error_of_another_kind_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        choose({"plain": lambda: 1.0, "broken": lambda: 1 / 0})


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_autotuning_can_be_turned_off(monkeypatch, cache, value):
    monkeypatch.setenv("CULUX_AUTOTUNE", value)
    assert choose(fixed(plain=20.0, fused=10.0)) == ("plain" if value == "0" else "fused")
    assert bool(list(cache.glob("*"))) == (value != "0")


def test_off_means_that_files_are_not_asked_either(monkeypatch):
    choose(fixed(plain=20.0, fused=10.0))
    forget(monkeypatch)
    monkeypatch.setenv("CULUX_AUTOTUNE", "0")
    assert choose(fixed(plain=20.0, fused=10.0)) == "plain"


def test_a_wrong_value_of_the_variable_is_an_error(monkeypatch):
    monkeypatch.setenv("CULUX_AUTOTUNE", "off")
    with pytest.raises(KernelError, match=r"CULUX_AUTOTUNE to be 1 \(time .*\) or 0 \(take .*\), got 'off'"):
        choose(fixed(plain=20.0, fused=10.0))


def test_nothing_is_timed_during_a_capture(monkeypatch, cache):
    timer = FakeTimer()
    timer.capturing = True
    candidates = {"plain": failing(AssertionError("run")), "fused": failing(AssertionError("run"))}
    assert choose(candidates, timer=timer) == "plain"
    assert not list(cache.glob("*.json"))
    timer.capturing = False
    assert choose(fixed(plain=20.0, fused=10.0), timer=timer) == "fused"
    timer.capturing = True
    assert choose(candidates, timer=timer) == "fused"
    forget(monkeypatch)
    assert choose(candidates, timer=timer) == "fused"  # from the file


def test_without_a_timer_or_a_choice_it_is_the_default(cache):
    assert tuning.choose("dense", (1,), fixed(plain=2.0, fused=1.0), "plain", device=DEVICE) == "plain"
    assert choose({"plain": failing(AssertionError("run"))}) == "plain"
    assert not cache.exists()


def test_wrong_arguments():
    with pytest.raises(KernelError, match="dense: expected a default among plain, fused, got 'fusd'"):
        choose(fixed(plain=1.0, fused=2.0), "fusd")
    with pytest.raises(KernelError, match=r"expected a key of integers and strings, got \(128, 0.5\)"):
        choose(fixed(plain=1.0, fused=2.0), key=(128, 0.5))


def test_threads_time_one_after_the_other():
    timer, running, overlaps = FakeTimer(), [], []
    start = threading.Barrier(8)
    timed = timer.elapsed

    def elapsed(run, repeats):
        running.append(1)
        overlaps.append(len(running))
        result = timed(run, repeats)
        running.pop()
        return result

    timer.elapsed = elapsed
    answers = []

    def work(i):
        start.wait()
        answers.append(choose(fixed(plain=2000.0, fused=1000.0), key=(i % 2,), timer=timer))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["fused"] * 8
    assert set(overlaps) == {1}
    assert len(timer.samples) == 2 * 2 * 9  # two keys, two candidates, nine samples


def test_a_candidate_may_choose_itself():
    def nested():
        return 10.0 if choose(fixed(plain=2.0, b=1.0), key=(9,)) == "b" else 30.0

    assert choose({"plain": lambda: 20.0, "nested": nested}) == "nested"


def test_cupys_timer_takes_the_time_between_two_events(standin_cupy, monkeypatch):
    monkeypatch.delenv("CULUX_AUTOTUNE")
    standin_cupy.set_device_count(2)
    timer = get_backend("cupy").timer(1)
    assert get_backend("cupy").timer(1) is timer
    assert (timer.device, timer.versions) == ("Stand-in", {"cuda": "12.9", "driver": "12.9"})
    with standin_cupy.cuda.Device(1):
        x = standin_cupy.ones(3)
    candidates = {"three": lambda: x + x + x + x, "one": lambda: x + x}  # the stand-in takes 10 us for each addition
    assert tuning.choose("add", (3,), candidates, "three", device=timer.device, timer=timer) == "one"
    assert records.load_all()[0].times == pytest.approx({"three": 30.0, "one": 10.0})


def test_cupys_timer_knows_a_capture(standin_cupy):
    timer = get_backend("cupy").timer(0)
    with standin_cupy.cuda.Stream(non_blocking=True) as stream:
        x = standin_cupy.ones(3)
        stream.begin_capture()
        assert timer.elapsed(failing(AssertionError("run")), 1) is None
        stream.end_capture()
        assert timer.elapsed(lambda: x + x, 2) == pytest.approx(10.0)


def test_cupys_timer_needs_a_device(standin_cupy):
    with pytest.raises(DeviceError, match="index of a CUDA device, got 1"):
        get_backend("cupy").timer(1)


def test_numpy_has_nothing_to_time():
    with pytest.raises(KernelError, match="no CUDA kernels to time; move the arrays to a GPU"):
        get_backend("numpy").timer(0)


@pytest.mark.gpu
def test_events_tell_a_long_kernel_from_a_short_one():
    import cupy

    timer = get_backend("cupy").timer(0)
    small, large = cupy.zeros(2**10, "float32"), cupy.zeros(2**26, "float32")
    candidates = {"large": lambda: cupy.add(large, 1, out=large), "small": lambda: cupy.add(small, 1, out=small)}
    assert tuning.choose("add", (1,), candidates, "large", device=timer.device, timer=timer) == "small"
    (record,) = records.load_all()
    assert record.device == timer.device
    assert record.times["large"] > 50  # 0.5 GB of traffic: more than 10 TB/s would be needed
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        assert timer.elapsed(lambda: None, 1) is None
        cupy.add(small, 1, out=small)
        stream.end_capture()
