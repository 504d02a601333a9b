"""Fixtures of the tests against a Hub on the loopback."""

from collections.abc import Iterator

import pytest
from hub_server import HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A running Hub without repositories; its user is `me`."""
    with HubServer() as server:
        yield server
