"""Errors that the processes of a run exchange: what they keep."""

import pytest
from accelerate import Accelerator
from support.messages import raises
from support.runs import reset_accelerate

from m2v_finetune.data.workers import WorkerError
from m2v_finetune.errors import UserError
from m2v_finetune.training.faults import DataError, gather_errors


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (WorkerError("reason"), WorkerError.code),
        (UserError("reason", code="cache-in-use"), "cache-in-use"),
        (DataError("reason"), DataError.code),
        ("reason", DataError.code),
    ],
    ids=repr,
)
def test_the_code_of_an_error_is_kept(failure, code):
    reset_accelerate()
    with raises(code, "reason") as raised:
        gather_errors(Accelerator(cpu=True), failure, {})
    assert isinstance(raised.value, DataError)
