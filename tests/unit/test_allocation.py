"""Freed memory is kept: pages that were cleared once are not cleared again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.models import TAGGING, build_tagger

# For each case, in a process of its own, the pages that the system clears in ten more rounds of a block of
# 64 MB (16,384 pages). The cases are forked, so that PyTorch is imported once.
PROGRAM = """
import contextlib, io, json, os, resource, sys
from argparse import Namespace
import torch
from m2v_finetune.allocation import keep_freed_memory
from m2v_finetune.cli import main
from m2v_finetune.cli.embed import build_embeddings
from m2v_finetune.cli.loading import load_model
from m2v_finetune.settings import read_config
from m2v_finetune.training.starting import start

def rounds():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def pages(prepare, **variables):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.environ.update(variables)
        prepare()
        rounds()
        os.write(writer, str(rounds()).encode())
        os._exit(0)
    os.close(writer)
    return int(os.fdopen(reader).read())

def evaluate():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["evaluate", sys.argv[1], sys.argv[1] + "/songs.csv"])

torch.set_num_threads(1)
cpu = lambda: keep_freed_memory(torch.device("cpu"))
print(json.dumps({
    "default": pages(lambda: None),
    "cpu": pages(cpu),
    "gpu": pages(lambda: keep_freed_memory(torch.device("cuda"))),
    "variable": pages(cpu, MALLOC_TRIM_THRESHOLD_="131072"),
    "tunable": pages(cpu, GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072"),
    "other tunable": pages(cpu, GLIBC_TUNABLES="glibc.pthread.rseq=0"),
    "m2v predict": pages(lambda: load_model(sys.argv[1], Namespace(runtime="torch", precision="auto"))),
    "m2v train": pages(
        lambda: start(read_config("tagging", ["--run.output_dir", sys.argv[1] + "/run"]), task="tagging")
    ),
    "m2v evaluate": pages(evaluate),
    "m2v embed": pages(lambda: build_embeddings("filterbank-small", {})),
}))
"""

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or (HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text()),
    reason="mallopt is of glibc, and pages are counted one by one",
)


@pytest.fixture(scope="module")
def pages_cleared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_tagger().save_pretrained(folder)
    rows = ["path,tags,split"]
    for number, labels in enumerate([*TAGGING.labels, ""]):
        soundfile.write(
            folder / f"{number}.wav", 0.1 * np.random.default_rng(number).random(8000), 16000
        )
        rows.append(f"{number}.wav,{labels},test")
    (folder / "songs.csv").write_text("\n".join(rows))
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=clean,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "case", ["cpu", "other tunable", "m2v train", "m2v predict", "m2v evaluate", "m2v embed"]
)
def test_a_block_that_was_freed_is_used_again(pages_cleared, case):
    assert pages_cleared[case] < 1000


@pytest.mark.parametrize("case", ["default", "gpu", "variable", "tunable"])
def test_the_allocator_of_gpu_runs_and_of_users_is_left_alone(pages_cleared, case):
    assert pages_cleared[case] > 100_000
