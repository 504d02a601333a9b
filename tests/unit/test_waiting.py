"""The share of their time that steps wait for data."""

import time

import pytest

from m2v_finetune.training.waiting import MUCH_SECONDS, StepClock, Waiting


def take_steps(clock: StepClock, number: int, *, read: float, compute: float) -> None:
    for _ in range(number):
        with clock.step():
            with clock.reading():
                time.sleep(read)
            time.sleep(compute)


def test_reading_counts_and_the_first_step_does_not():
    clock = StepClock()
    take_steps(clock, 1, read=0.3, compute=0.0)
    assert (clock.epoch.share, clock.epoch.total_seconds) == (0.0, 0.0)
    take_steps(clock, 4, read=0.02, compute=0.06)
    assert clock.line == clock.epoch == clock.run
    assert 0.08 <= clock.run.waited_seconds < clock.run.total_seconds
    assert clock.run.total_seconds >= 0.32
    epoch = clock.take_epoch()
    assert 0.05 < epoch.share < 0.75
    assert clock.take_epoch().share == 0.0
    assert clock.take_line() == epoch == clock.run


def test_a_step_that_fails_does_not_count():
    clock = StepClock()
    take_steps(clock, 2, read=0.0, compute=0.001)
    before = clock.run.total_seconds
    with pytest.raises(OSError, match="gone"), clock.step():
        raise OSError("gone")
    assert clock.run.total_seconds == before


@pytest.mark.parametrize(
    ("waited", "total", "is_much"),
    [(0.0, 0.0, False), (2.0, 10.0, True), (1.5, 100.0, False), (MUCH_SECONDS / 2, 1.0, False)],
)
def test_what_is_much(waited, total, is_much):
    assert Waiting(waited_seconds=waited, total_seconds=total).is_much is is_much
