"""Signals, sent to real processes: the first asks, the second ends."""

import os
import signal
import time
from contextlib import suppress

import pytest
from support.messages import names

from m2v_finetune.errors import Stopped, run_command
from m2v_finetune.training import signals
from m2v_finetune.training.signals import SIGNALS, stop_on_signals

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_announced(number, capfd):
    earlier = [signal.getsignal(one) for one in SIGNALS]
    with stop_on_signals() as stop:
        assert not stop.arrived
        send(number)
        assert (stop.arrived, stop.number) == (True, number)
        assert names(capfd.readouterr().err, number.name)
        # At once, a launcher passes on what the process got as well.
        send(number)
        send(signal.SIGTERM)
        assert stop.number == number
    assert [signal.getsignal(one) for one in SIGNALS] == earlier


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_would_be_lost_the_first_signal_stops(number):
    with stop_on_signals(lambda: "the advice") as outer:
        with pytest.raises(Stopped) as caught:
            send(number)
        assert caught.value.signal_number == number
        assert str(caught.value) == "the advice"
        assert outer.arrived
    with stop_on_signals() as stop:
        with pytest.raises(Stopped), stop.interruptible():
            send(number)
        with pytest.raises(Stopped), stop.interruptible():
            pytest.fail("the signal has arrived")


@pytest.mark.parametrize("fails", [False, True])
def test_after_the_block_the_first_signal_is_remembered_again(fails, capfd):
    with stop_on_signals() as stop:
        with suppress(ValueError), stop.interruptible():
            if fails:
                raise ValueError
        send(signal.SIGTERM)
        assert stop.arrived
        assert names(capfd.readouterr().err, "SIGTERM")


@pytest.mark.parametrize("number", SIGNALS)
def test_exit_codes(number):
    def command():
        with stop_on_signals(lambda: "the advice"):
            send(number)

    with pytest.raises(SystemExit) as ended:
        run_command(command)
    assert ended.value.code == CODES[number]


def in_child(do):
    child = os.fork()
    if child == 0:
        do()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(number, monkeypatch):
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.05)

    def be_sent_two():
        with stop_on_signals():
            send(number)
            time.sleep(0.1)
            send(number)

    # A shell shows such an end as 128 + the number of the signal.
    assert 128 - in_child(be_sent_two) == CODES[number]


def test_a_worker_leaves_the_signals_of_its_process_alone():
    def be_a_worker():
        send(signal.SIGINT)
        send(signal.SIGTERM)

    with stop_on_signals(lambda: "") as stop:
        assert in_child(be_a_worker) == 0
        assert not stop.arrived
