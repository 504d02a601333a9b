"""Errors: tests assert their codes or types, and the values that the message has to name."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from m2v_finetune.errors import Stopped, UserError, run_command


@contextmanager
def raises(code: str, *values: object) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Assert that a `UserError` of this code is raised, whose message names these values."""
    with pytest.raises(UserError) as raised:
        yield raised
    assert raised.value.code == code, f"{raised.value.code}: {raised.value}"
    message = " ".join(str(raised.value).split())
    for value in values:
        assert str(value) in message


@contextmanager
def fails(error: type[Exception], *values: object) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Assert that an error without a code is raised, whose message names these values as words."""
    with pytest.raises(error) as raised:
        yield raised
    assert names(str(raised.value), *values), raised.value


@contextmanager
def stops_after(step: int, num_steps: int) -> Iterator[pytest.ExceptionInfo[Stopped]]:
    """Assert that a run stops by a signal, after this step."""
    with pytest.raises(Stopped) as raised:
        yield raised
    assert resumed_after(str(raised.value)) == (step, num_steps), raised.value


def names(text: str, *values: object) -> bool:
    """Return whether a text has all of these values as words, in any sentence and order."""
    joined = " ".join(text.split())
    return all(re.search(rf"(?<![\w.]){re.escape(str(v))}(?!\w|\.\d)", joined) for v in values)


def resumed_after(text: str) -> tuple[int, int] | None:
    """Return the step after which a run resumed, and their number, by its log; None if it started anew."""
    found = re.search(r"step (\d+) of (\d+)", " ".join(text.split()))
    return None if found is None else (int(found[1]), int(found[2]))


def logged(caplog: pytest.LogCaptureFixture, *values: object) -> int:
    """Return the number of records of the log that name all of these values."""
    return sum(names(record.getMessage(), *values) for record in caplog.records)


def noting_run_command(codes: list[str | None]) -> Callable[[Callable[[], None]], None]:
    """Return a `run_command` that appends the code of the `UserError` that ends a command, or None.

    A command prints the message alone.
    """

    def run(command: Callable[[], None]) -> None:
        def noted() -> None:
            codes.append(None)
            try:
                command()
            except UserError as error:
                codes[-1] = error.code
                raise

        run_command(noted)

    return run


def error_message(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """Return the message of the `UserError` that a call has to raise."""
    with pytest.raises(UserError) as raised:
        call(*arguments, **named)
    return str(raised.value)
