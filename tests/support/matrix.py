"""Members of a matrix that repeat the path of others."""

from typing import Any

import pytest


def exhaustive(*members: Any) -> list[Any]:
    """Return members of `pytest.mark.parametrize` that `make exhaustive` runs alone."""
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.exhaustive)
        for one in members
    ]
