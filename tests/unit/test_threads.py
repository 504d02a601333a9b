"""Intra-op threads: by the size of a network, the cores of the process, and what the user set."""

import os
import threading
import time

import joblib
import numpy as np
import pytest
import torch
from support.models import SAMPLES, build_tagger
from torch import nn

from m2v_finetune import threads
from m2v_finetune.backbones import load_backbone
from m2v_finetune.errors import Stopped
from m2v_finetune.micro_batching import MicroBatcher
from m2v_finetune.model import inference
from m2v_finetune.threads import (
    SMALL_PARAMETERS,
    batches_at_once,
    choose_threads,
    in_order,
    intra_op_threads,
)

SMALL = nn.Linear(10, 10)


def large():
    with torch.device("meta"):
        return nn.Linear(SMALL_PARAMETERS, 1)


@pytest.fixture
def cores(monkeypatch):
    """A process of 8 cores, in which nobody set a number of threads."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    monkeypatch.setattr(threads, "_INITIAL", 8)
    monkeypatch.setattr(joblib, "cpu_count", lambda **_: 8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "processes", "expected"), [(8, 1, 8), (3, 1, 3), (16, 1, 8), (8, 2, 4), (2, 3, 1)]
)
def test_a_large_network_uses_the_cores_of_its_process(
    cores, monkeypatch, quota, processes, expected
):
    monkeypatch.setattr(joblib, "cpu_count", lambda **_: quota)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert choose_threads(large()) == expected


def test_a_small_network_uses_one_thread(cores):
    assert choose_threads(SMALL) == 1
    both = nn.ModuleList([SMALL, large()])
    assert choose_threads(both) == 8
    assert choose_threads(both, without=[both[1]]) == 1


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_a_number_in_the_environment_is_kept(cores, monkeypatch, name):
    monkeypatch.setenv(name, "8")
    assert choose_threads(SMALL) == 8


@pytest.mark.parametrize("value", ["0", "-3", "abc", " ", ""])
def test_a_number_that_openmp_ignores_is_no_choice(cores, monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert choose_threads(SMALL) == 1
    assert choose_threads(large()) == batches_at_once(SMALL) == 8


@pytest.mark.parametrize("launcher", threads.LAUNCHERS)
def test_the_number_of_a_launcher_is_no_choice(monkeypatch, launcher):
    """accelerate launch, and torchrun with several processes, set OMP_NUM_THREADS to 1."""
    monkeypatch.setattr(joblib, "cpu_count", lambda **_: 8)
    monkeypatch.setattr(threads, "_INITIAL", torch.get_num_threads())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_threads(large()) == torch.get_num_threads()
    monkeypatch.setenv(launcher, "no")
    assert choose_threads(large()) == batches_at_once(SMALL) == 4
    assert choose_threads(SMALL) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(large()) == torch.get_num_threads()


def test_the_backbones_that_ship_are_small(cores):
    assert choose_threads(load_backbone("filterbank-small")) == 1


def test_batches_on_other_threads_have_the_autocast_of_the_caller():
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rows = list(in_order(lambda one: one @ one, [torch.ones(2, 2)] * 5, at_once=2))
        assert {row.dtype for _, row in rows} == {torch.bfloat16 if enabled else torch.float32}


def test_a_number_that_was_set_in_torch_is_kept(cores):
    torch.set_num_threads(5)
    assert choose_threads(SMALL) == choose_threads(large()) == 5


def test_the_number_is_that_of_before_after_the_block(cores):
    with intra_op_threads(1):
        assert torch.get_num_threads() == 1
        assert choose_threads(large()) == 1  # blocks within keep the number
    assert torch.get_num_threads() == 8


def test_prediction_and_embedding_of_a_small_network_run_on_one_thread(cores):
    tagger = build_tagger()
    seen = []
    layer = tagger.backbone.layers[0]
    layer.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    tagger.predict(np.zeros(SAMPLES, np.float32), sample_rate=16000)
    tagger.embed(np.zeros(SAMPLES, np.float32), sample_rate=16000)
    tagger.backbone.embed(np.zeros(SAMPLES, np.float32), sample_rate=16000)
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == 8


def test_the_cores_of_a_process_are_those_of_its_affinity(monkeypatch):
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    os.sched_setaffinity(0, one)
    try:
        assert joblib.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("at_once", [1, 3])
def test_batches_come_in_their_order_and_an_error_after_those_before_it(at_once):
    def batches():
        yield from range(5)
        raise ValueError("the fifth cannot be read")

    def work(number):
        time.sleep(0.02 * (5 - number))  # later ones are faster
        return number**2

    rows = in_order(work, batches(), at_once=at_once)
    assert [next(rows) for _ in range(5)] == [(number, number**2) for number in range(5)]
    with pytest.raises(ValueError, match="fifth"):
        next(rows)


def test_few_batches_are_read_before_they_are_used():
    read = []

    def batches():
        for number in range(100):
            read.append(number)
            yield number

    for number, _ in in_order(lambda one: one, batches(), at_once=2):
        assert len(read) <= number + 1 + 2 + 1
    assert len(read) == 100


def test_an_error_of_a_batch_is_raised_at_its_place_and_the_others_end():
    ended = []

    def work(number):
        if number == 1:
            raise ValueError("not finite")
        ended.append(number)
        return number

    others = threading.active_count()
    rows = in_order(work, range(100), at_once=2)
    assert next(rows) == (0, 0)
    with pytest.raises(ValueError, match="finite"):
        next(rows)
    assert len(ended) < 10
    assert threading.active_count() == others


def test_several_batches_are_computed_at_once():
    both = threading.Barrier(2, timeout=30)  # each waits for the other
    assert [r for _, r in in_order(lambda _: both.wait() >= 0, range(4), at_once=2)] == [True] * 4


def test_only_small_networks_on_a_cpu_compute_several(cores, monkeypatch):
    assert batches_at_once(SMALL) == 8
    assert batches_at_once(nn.Linear(SMALL_PARAMETERS // 10, 10)) == 1
    assert batches_at_once(nn.Linear(10, 10, device="meta")) == 1  # not on a CPU
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert batches_at_once(SMALL) == 4
    with intra_op_threads(1):
        assert batches_at_once(SMALL) == 1  # within training
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert batches_at_once(SMALL) == 1


def test_results_are_the_same_at_any_number(cores, monkeypatch):
    tagger = build_tagger()
    song = np.random.default_rng(0).normal(0, 0.1, 9 * SAMPLES).astype(np.float32)
    two = threading.Barrier(2, timeout=30)  # the first two batches wait for each other
    waiting = [1, 1]

    def wait(*_):
        if waiting:
            waiting.pop()
            two.wait()

    hook = tagger.backbone.layers[0].register_forward_pre_hook(wait)
    several = tagger.predict(song, sample_rate=16000, batch_size=1)
    assert not waiting
    hook.remove()
    monkeypatch.setattr(inference, "batches_at_once", lambda _: 1)
    assert tagger.predict(song, sample_rate=16000, batch_size=1) == several


def test_a_signal_is_raised_at_once():
    def batches():
        yield from range(3)
        raise Stopped(15, "resume")

    rows = in_order(lambda number: number, batches(), at_once=3)
    with pytest.raises(Stopped):
        next(rows)


def test_batches_at_once_that_do_not_fit_are_computed_alone():
    """Room for two windows of all batches together: each fits alone, in two parts."""
    used, lock = [0], threading.Lock()

    def compute(windows):
        with lock:
            used[0] += len(windows)
            fits = used[0] <= 2
        time.sleep(0.02)
        with lock:
            used[0] -= len(windows)
        if not fits:
            raise torch.OutOfMemoryError
        return windows + 1

    batcher = MicroBatcher()
    batches = [torch.arange(4) + 4 * number for number in range(6)]
    rows = list(in_order(lambda one: batcher.run(compute, [one]), batches, at_once=4))
    assert batcher.size in (1, 2)  # 1 if another batch was still computed beside it
    assert torch.equal(torch.cat([row for _, row in rows]), torch.arange(24) + 1)


def test_a_network_that_another_library_runs_is_computed_batch_by_batch(cores):
    assert batches_at_once(nn.Identity()) == 1
