"""Files that are written whole, or not at all."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest

from m2v_finetune.backbones import load_backbone
from m2v_finetune.errors import run_command
from m2v_finetune.files import write_files
from m2v_finetune.model import TaskModel


@contextmanager
def no_file_longer_than(num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def model():
    from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
    from m2v_finetune.tasks.tagging import Tagging

    return TaskModel.build(
        task=Tagging(labels=("drums", "piano"), label_column="tags"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="mlp"),
        tuning=TuningConfig(method="lora"),
        window_seconds=1.0,
    )


def test_files_of_a_model_follow_the_umask(model, tmp_path):
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "model")
        load_backbone("filterbank-small").save_pretrained(tmp_path / "backbone")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_model_that_the_disk_does_not_take_is_not_half_there(model, tmp_path, capsys):
    def save():
        with no_file_longer_than(100_000):
            model.save_pretrained(tmp_path / "model")

    with pytest.raises(SystemExit) as ended:
        run_command(save)
    assert ended.value.code == 2
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: {tmp_path / 'model' / 'model.safetensors'} ")
    assert os.strerror(errno.EFBIG) in message
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_model_stays_where_the_disk_does_not_take_a_new_one(tmp_path):
    write_files(tmp_path, {"weights": b"old", "config": b"old"})
    with no_file_longer_than(1000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        write_files(tmp_path, {"weights": b"new", "config": b"n" * 1001})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "weights": b"old",
        "config": b"old",
    }
