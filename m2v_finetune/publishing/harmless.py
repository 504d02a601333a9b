"""Pictures and cards, which may fail: what was trained and measured is there without them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from m2v_finetune.errors import Stopped

logger = logging.getLogger(__name__)


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Turn any failure of the block into a warning, with its reason; the traceback goes to the debug log.

    Args:
        what: Is made there, such as ``The model card``.
    """
    try:
        yield
    except Stopped:
        raise  # a signal: it is what the user wants
    except Exception as error:
        logger.warning(
            "%s cannot be made (%s: %s). Results and model are whole without.",
            what,
            type(error).__name__,
            error,
        )
        logger.debug("%s", what, exc_info=True)
