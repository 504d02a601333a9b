"""Models and Spaces, pushed to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from m2v_finetune.hub.explained import explained


def check_login(repo_id: str) -> None:
    """Check that the Hub accepts the token.

    Raises:
        UserError: It does not, or it cannot be reached.
    """
    with explained(f"log in for {repo_id}"):
        HfApi().whoami()


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    message: str,
    library: tuple[str, str],
    token: str | None = None,
    space_sdk: str | None = None,
) -> str:
    """Create a repository of a model or a Space if needed, and upload a folder in one commit.

    Args:
        folder: Its files replace those of the same name; others in the repository stay.
        repo_id: ``user/name``.
        private: True to create a private repository.
        message: Commit message.
        library: Name and version that are sent to the Hub.
        token: Token of the Hub; that of the login if None.
        space_sdk: Library of a Space; None for a model.

    Returns:
        The address of the repository.

    Raises:
        UserError: No access, no network, or a failing server; the folder is untouched.
    """
    with explained(f"push to {repo_id}"):
        api = HfApi(token=token, library_name=library[0], library_version=library[1])
        api.whoami()  # creating an existing repository succeeds without a token; this does not
        kind = "model" if space_sdk is None else "space"
        url = api.create_repo(
            repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=space_sdk
        )
        api.upload_folder(
            repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message=message
        )
    return str(url)
