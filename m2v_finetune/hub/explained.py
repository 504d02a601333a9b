"""Messages for errors of the Hub client: the failed action, the reason, and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from httpx2 import HTTPError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from m2v_finetune.errors import UserError

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the Hub client's errors into a `UserError` with the failed action and the reason.

    Args:
        doing: Action, such as ``fetch m-a-p/music2vec-v1``.
    """
    try:
        yield
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, *UNREACHABLE) as error:
        raise UserError(f"Could not {doing}: {explanation(error)}", code=_code(error)) from error
    except RuntimeError as error:
        # The client wraps errors in the upload of a large file.
        if not isinstance(error.__cause__, HTTPError):
            raise
        cause = error.__cause__
        raise UserError(f"Could not {doing}: {explanation(cause)}", code=_code(cause)) from error


def _code(error: BaseException) -> str:
    """Return the code of an error of the Hub client."""
    kinds: dict[type[BaseException], str] = {
        GatedRepoError: "hub-gated",
        RepositoryNotFoundError: "hub-not-found",
        RevisionNotFoundError: "hub-no-revision",
        LocalTokenNotFoundError: "hub-not-logged-in",
        HFValidationError: "hub-invalid-id",
    }
    for kind, code in kinds.items():
        if isinstance(error, kind):
            return code
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if not isinstance(cause, HfHubHTTPError):
        return "hub-unreachable"
    return "hub-no-access" if cause.response.status_code in (401, 403) else "hub-server-error"


def explanation(error: BaseException) -> str:
    """Return the reason and the remedy of an error of the Hub client."""
    if isinstance(error, GatedRepoError):
        return f"the repository is gated. Accept its terms on its page. {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub knows no such repository, or it is private and your token does not open it. Check "
            f"the name. {LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision. Check its branches and tags."
    if isinstance(error, LocalTokenNotFoundError):
        return f"you are not logged in. {LOG_IN}"
    if isinstance(error, HFValidationError):
        return str(error)
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if not isinstance(cause, HfHubHTTPError):
        advice = "Check the network (and HF_HUB_OFFLINE, HF_ENDPOINT)"
        if isinstance(error, LocalEntryNotFoundError):
            return (
                "the Hub cannot be reached, and there is no complete earlier copy here. "
                f"{advice}, or use a local folder."
            )
        return f"the Hub cannot be reached. {advice}."
    status = cause.response.status_code
    if status == 401:
        return f"the Hub refuses your token (401). {LOG_IN}"
    if status == 403:
        return f"your token may not do that (403). Check the user or organisation in the name. {LOG_IN}"
    return f"the Hub failed with status {status}. Try again later."
