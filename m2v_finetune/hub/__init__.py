"""Fetching from the Hugging Face Hub and pushing to it, with messages that a person can act on."""

from m2v_finetune.hub.explained import explained
from m2v_finetune.hub.fetching import (
    DEFAULT_ACCESS,
    HubAccess,
    download_checkpoint,
    download_dataset,
    download_snapshot,
    is_repo_id,
)
from m2v_finetune.hub.pushing import check_login, upload_folder

__all__ = [
    "DEFAULT_ACCESS",
    "HubAccess",
    "check_login",
    "download_checkpoint",
    "download_dataset",
    "download_snapshot",
    "explained",
    "is_repo_id",
    "upload_folder",
]
