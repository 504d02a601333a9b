"""Weights that a run starts from: it resumes only from the same ones."""

import hashlib

from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json, write_json
from m2v_finetune.model import TaskModel
from m2v_finetune.training.run import Run

BACKBONE = "backbone"
"""Entry of start.json with the hash of the backbone's weights."""
MODEL = "fingerprint"
"""Entry of start.json with the hash of the model of ``training.init_from`` or ``training.teacher``."""


def require_same_model(start: TaskModel, source: str, run: Run) -> None:
    """Raise `UserError` if the model that a run started from, or its teacher, has other weights now."""
    digest = hashlib.sha256()
    for name, tensor in sorted(start.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    _require_same(MODEL, digest.hexdigest(), source, run)


def require_same_backbone(fingerprint: str | None, source: str | None, run: Run) -> None:
    """Raise `UserError` if the backbone of a resumed run has other weights now.

    Args:
        fingerprint: Of the weights of the source (`Backbone.fingerprint`); None without such weights.
        source: Source of the backbone; None if its weights are random.
        run: The run.
    """
    if fingerprint is not None and source is not None:
        _require_same(BACKBONE, fingerprint, source, run)


def _require_same(entry: str, fingerprint: str, source: str, run: Run) -> None:
    run.start_hashes[entry] = fingerprint
    if not run.has_checkpoint or not run.folder.start.is_file():
        return
    try:
        initial = parse_json(run.folder.start.read_bytes()).get(entry, fingerprint)
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{run.folder.start} is damaged ({error}), so the run cannot resume.",
            code="run-file-damaged",
        ) from error
    if initial != fingerprint:
        raise UserError(
            f"{source} has other weights than when the run started from it, so the run cannot resume. Bring "
            "back those weights, or start a new run.",
            code="start-changed",
        )


def keep_start(source: str | None, run: Run) -> None:
    """Write the hashes of the weights that a new run starts from, and the source of the model or teacher."""
    if run.start_hashes and run.is_main_process and not run.has_checkpoint:
        write_json(run.folder.start, {"source": source, **run.start_hashes})
