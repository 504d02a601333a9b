"""A Space of the Hub with the page of a model."""

import json
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import yaml

from m2v_finetune import __version__
from m2v_finetune.errors import UserError
from m2v_finetune.hub import is_repo_id, upload_folder
from m2v_finetune.hub.licence import licence_metadata
from m2v_finetune.model import TaskModel

PACKAGE = "m2v-finetune"
APP = '''"""Serves the page of a model, as `m2v demo` does."""

from m2v_finetune import TaskModel
from m2v_finetune.demo import build_page, launch_page

MODEL = {source!r}

launch_page(build_page(TaskModel.from_pretrained(MODEL), MODEL), host="0.0.0.0")
'''


def space_files(model: TaskModel, source: str, *, package: str | None = None) -> dict[str, str]:
    """Return the files of a Space, by name.

    Args:
        model: The model.
        source: Hub id of the model, from which the Space loads it.
        package: Requirement from which pip installs this package in the Space, such as
            ``m2v-finetune[demo] @ git+https://...``; the place that this installation came from if None.

    Raises:
        UserError: ``source`` is no Hub id, or this package was installed from a local folder.
    """
    if not is_repo_id(source) or Path(source).exists():
        raise UserError(
            f"A Space loads its model from the Hub, and {source} is no Hub id. Push the model first with "
            f"`m2v push {source} me/my-model`, then name me/my-model.",
            code="space-model-not-on-hub",
        )
    facts = {
        "title": f"{model.task.name.capitalize()} with {source}",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "models": [source],
    }
    facts |= licence_metadata(model.backbone.licence)
    metadata = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return {
        "app.py": APP.format(source=source),
        "requirements.txt": f"{package or installed_from()}\n",
        "README.md": f"---\n{metadata}---\n\nThe page of the model "
        f"[{source}](https://huggingface.co/{source}), made by `m2v demo {source} --push`.\n",
    }


def installed_from() -> str:
    """Return the requirement from which pip installed this package, with the extra `demo`.

    Source: PyPA, "Recording the Direct URL Origin of installed distributions" (direct_url.json).

    Raises:
        UserError: It was installed from a local folder or file, or is not installed.
    """
    try:
        text = distribution(PACKAGE).read_text("direct_url.json")
    except PackageNotFoundError:
        text = '{"url": "file:"}'
    if text is None:  # from an index
        return f"{PACKAGE}[demo]=={__version__}"
    origin = json.loads(text)
    url = origin["url"]
    if url.startswith("file:"):
        raise UserError(
            "This package was installed from a local folder, which a Space cannot read. Name a place from "
            "which pip can install it, such as --package 'm2v-finetune[demo] @ git+https://...'.",
            code="space-package-is-local",
        )
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    return f"{PACKAGE}[demo] @ {url}"


def push_space(files: dict[str, str], space_id: str, *, private: bool = False) -> str:
    """Create a Space if needed and upload its files in one commit; return its address.

    Raises:
        UserError: No access, no network, or a failing server.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return upload_folder(
            folder,
            space_id,
            private=private,
            message=f"Page made with {PACKAGE}",
            library=(PACKAGE, __version__),
            space_sdk="gradio",
        )
