"""The share of their time that steps wait for data."""

import time

import pytest

from m2v_finetune.training.step_timer import SIGNIFICANT_SECONDS, DataWait, StepTimer


def take_steps(timer: StepTimer, number: int, *, read: float, compute: float) -> None:
    for _ in range(number):
        with timer.step():
            with timer.reading():
                time.sleep(read)
            time.sleep(compute)


def test_reading_counts_and_the_first_step_does_not():
    timer = StepTimer()
    take_steps(timer, 1, read=0.3, compute=0.0)
    assert (timer.epoch.share, timer.epoch.total_seconds) == (0.0, 0.0)
    take_steps(timer, 4, read=0.02, compute=0.06)
    assert timer.line == timer.epoch == timer.run
    assert 0.08 <= timer.run.waited_seconds < timer.run.total_seconds
    assert timer.run.total_seconds >= 0.32
    epoch = timer.take_epoch()
    assert 0.05 < epoch.share < 0.75
    assert timer.take_epoch().share == 0.0
    assert timer.take_line() == epoch == timer.run


def test_a_step_that_fails_does_not_count():
    timer = StepTimer()
    take_steps(timer, 2, read=0.0, compute=0.001)
    before = timer.run.total_seconds
    with pytest.raises(OSError, match="gone"), timer.step():
        raise OSError("gone")
    assert timer.run.total_seconds == before


@pytest.mark.parametrize(
    ("waited", "total", "is_significant"),
    [
        (0.0, 0.0, False),
        (2.0, 10.0, True),
        (1.5, 100.0, False),
        (SIGNIFICANT_SECONDS / 2, 1.0, False),
    ],
)
def test_what_is_significant(waited, total, is_significant):
    assert DataWait(waited_seconds=waited, total_seconds=total).is_significant is is_significant
