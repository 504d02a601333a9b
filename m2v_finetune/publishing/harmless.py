"""Handling of failures of plots and cards, which must not stop a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from m2v_finetune.errors import Stopped

logger = logging.getLogger(__name__)


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Turn any failure of the block into a warning, with its reason; the traceback goes to the debug log.

    Args:
        what: Name of the result, such as ``The model card``.
    """
    try:
        yield
    except Stopped:
        raise  # a signal of the user
    except Exception as error:
        logger.warning(
            "%s cannot be made (%s: %s). Results and model are complete without it.",
            what,
            type(error).__name__,
            error,
        )
        logger.debug("%s", what, exc_info=True)
