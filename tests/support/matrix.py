"""Members of matrices of tests that only some of the commands run."""

from typing import Any

import pytest


def slow(*members: Any) -> list[Any]:
    """Return members of `pytest.mark.parametrize` that CI runs, and `make test` does not."""
    return _marked(members, pytest.mark.slow)


def exhaustive(*members: Any) -> list[Any]:
    """Return members of `pytest.mark.parametrize` that `make exhaustive` runs alone."""
    return _marked(members, pytest.mark.exhaustive)


def _marked(members: tuple[Any, ...], mark: pytest.MarkDecorator) -> list[Any]:
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=mark) for one in members
    ]
