"""Checks of numbers in settings, and amounts of memory."""

import math
import re

from m2v_finetune.errors import UserError

BYTES_OF_UNIT = {"": 1, "b": 1, "mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}
LEAST_BYTES = 10**6
"""Least size that is given without a unit."""


def parse_bytes(name: str, text: str) -> int:
    """Return a size in bytes: ``11GB`` is 11e9, ``11GiB`` is 11 * 2**30, and ``8e9`` is 8e9.

    Args:
        name: Name of the setting, for messages.
        text: Value of the setting.

    Raises:
        UserError: The text is not a size, or the size is zero, or it has no unit and is below a million
            bytes, so that gigabytes were probably meant.

    >>> [parse_bytes("", text) for text in ("11GB", "1.5 GiB", "8e9")]
    [11000000000, 1610612736, 8000000000]
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]\+?\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = None if match is None else BYTES_OF_UNIT.get(match[2].lower())
    size = 0.0 if match is None or unit is None else float(match[1]) * unit
    number = round(size) if math.isfinite(size) else 0
    if number <= 0:
        raise UserError(
            f"{name} is '{text}', which is not an amount of memory. Write it as 11GB (decimal), 10GiB "
            "(binary) or 8e9 (bytes).",
            code="settings-range",
        )
    if match is not None and not match[2] and number < LEAST_BYTES:
        raise UserError(
            f"{name} is '{text}', which is {number} bytes. Did you mean {text.strip()}GB? A number without a "
            "unit is bytes.",
            code="settings-range",
        )
    return number


def whole_number(name: str, value: object, lowest: int) -> None:
    """Raise `UserError` for an argument that is no integer, or below its lowest value."""
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise UserError(
            f"{name} is {value!r}; it must be a whole number, at least {lowest}.",
            code="settings-range",
        )


def at_least(name: str, value: int, lowest: int) -> None:
    """Raise `UserError` if a number is below its lowest value."""
    if value < lowest:
        raise UserError(f"{name} is {value}; it must be at least {lowest}.", code="settings-range")


def positive(name: str, value: float) -> None:
    """Raise `UserError` if a number is not above 0, or not finite."""
    if not 0 < value < math.inf:
        raise UserError(
            f"{name} is {value}; it must be above 0, and finite.", code="settings-range"
        )


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `UserError` if a number is below its lowest value, or not below its highest."""
    if not low <= value < high:
        raise UserError(
            f"{name} is {value}; it must be at least {low} and below {high}.", code="settings-range"
        )


def between_0_and_1(name: str, value: float) -> None:
    """Raise `UserError` if a fraction is not above 0 and below 1."""
    if not 0.0 < value < 1.0:
        raise UserError(f"{name} is {value}; it must be between 0 and 1.", code="settings-range")
