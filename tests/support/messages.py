"""Messages of errors that a user can fix."""

from collections.abc import Callable
from typing import Any

import pytest

from m2v_finetune.errors import UserError


def error_message(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """Return the message of the `UserError` that a call has to raise."""
    with pytest.raises(UserError) as raised:
        call(*arguments, **named)
    return str(raised.value)
