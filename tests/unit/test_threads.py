"""Intra-op threads: by the size of a network, the cores of the process, and what the user set."""

import os

import joblib
import numpy as np
import pytest
import torch
from support.models import SAMPLES, build_tagger
from torch import nn

from m2v_finetune import threads
from m2v_finetune.threads import SMALL_PARAMETERS, choose_threads, intra_op_threads

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
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "processes", "expected"), [(8, 1, 8), (3, 1, 3), (16, 1, 8), (8, 2, 4), (2, 3, 1)]
)
def test_a_large_network_uses_the_cores_of_its_process(
    cores, monkeypatch, quota, processes, expected
):
    monkeypatch.setattr(joblib, "cpu_count", lambda: quota)
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
