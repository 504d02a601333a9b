"""Record of what a run starts from, start.json: it resumes only from the same model, backbone and effects."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from m2v_finetune.backbones import AnyBackbone
from m2v_finetune.backbones.network_parts import NAMES, other_settings
from m2v_finetune.config import AnyRecipeConfig, RecipeConfig
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json, write_json
from m2v_finetune.model import TaskModel
from m2v_finetune.model.fingerprint import model_fingerprint
from m2v_finetune.training.checkpoint import AnyModel
from m2v_finetune.training.feature_cache.keys import files_named
from m2v_finetune.training.run import Run

MODEL, WEIGHTS, SETTINGS, EFFECTS = "model", "weights", "backbone", "augmentation"
"""Entries of start.json: hashes of the model of ``training.init_from`` or ``training.teacher`` and of the
weights of the backbone, the backbone's settings, and a hash of the files of the augmentation."""


def require_same_model(start: TaskModel, source: str, run: Run) -> None:
    """Raise `UserError` if the model that a run started from, or its teacher, is another one now."""
    _require_same(MODEL, model_fingerprint(start), source, run)


def require_same_start(config: AnyRecipeConfig, model: AnyModel, run: Run) -> None:
    """Raise `UserError` if a resumed run has another backbone or other files of its augmentation now.

    Args:
        config: All settings.
        model: Model before training.
        run: The run.
    """
    if isinstance(model, TaskModel):
        weights = model.base_fingerprint
    else:
        weights = None if config.backbone.source is None else model.backbone.fingerprint()
    _require_same_backbone(model.backbone, weights, str(config.backbone.source), run)
    if isinstance(config, RecipeConfig):
        require_same_effects(config.augmentation.transforms, run)


def _require_same_backbone(
    backbone: AnyBackbone, fingerprint: str | None, source: str, run: Run
) -> None:
    settings = {k: v for k, v in backbone.settings.items() if k not in NAMES}
    settings |= {"sampling_rate": backbone.sample_rate, "do_normalize": backbone.normalize}
    before = _at_start(SETTINGS, settings, run)
    different = other_settings(settings, settings if before is None else before)
    if different:
        raise _changed(source, f"another {', '.join(different)}")
    if fingerprint is not None:
        _require_same(WEIGHTS, fingerprint, source, run)


def require_same_effects(transforms: Sequence[Mapping[str, Any]], run: Run) -> None:
    """Raise `UserError` if files of the augmentation were added, removed or changed in size."""
    files = files_named(transforms)
    if files:
        listed = sorted(f"{file.name} {file.stat().st_size}" for file in files)
        digest = hashlib.sha256("\n".join(listed).encode("utf-8", "surrogateescape")).hexdigest()
        _require_same(EFFECTS, digest, "augmentation.transforms", run, has="other files")


def keep_start(source: str | None, run: Run) -> None:
    """Write what a new run starts from, and the source of the model or teacher."""
    if run.start and run.is_main_process and not run.has_checkpoint:
        write_json(run.folder.start, {"source": source, **run.start})


def _require_same(
    entry: str, value: str, source: str, run: Run, *, has: str = "other weights or settings"
) -> None:
    if _at_start(entry, value, run) not in (None, value):
        raise _changed(source, has)


def _at_start(entry: str, value: Any, run: Run) -> Any:
    """Keep an entry of start.json, and return that of a resumed run; None if there is none."""
    run.start[entry] = value
    if not run.has_checkpoint or not run.folder.start.is_file():
        return None
    try:
        return parse_json(run.folder.start.read_bytes()).get(entry)
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{run.folder.start} is damaged ({error}), so the run cannot resume.",
            code="run-file-damaged",
        ) from error


def _changed(source: str, has: str) -> UserError:
    return UserError(
        f"{source} has {has} than when the run was started, so the run cannot resume. Restore it, or start "
        "a new run.",
        code="start-changed",
    )
