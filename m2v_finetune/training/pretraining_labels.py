"""Labels of a run of masked prediction, computed by all processes together."""

import logging

from accelerate.utils import broadcast_object_list, gather_object

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.config import PretrainingConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.data.saved_tracks import require_same_labels
from m2v_finetune.errors import UserError
from m2v_finetune.pretraining.masked_prediction.labels import (
    TrackLabels,
    find_clusters,
    label_tracks,
)
from m2v_finetune.pretraining.replay import REPLAY
from m2v_finetune.training.run import Run

logger = logging.getLogger(__name__)


def prepare_labels(
    config: PretrainingConfig,
    splits: dict[str, list[CheckedTrack]],
    grid: FrameGrid,
    run: Run,
) -> tuple[TrackLabels | None, dict[str, list[CheckedTrack]]]:
    """Fit clusters to the training tracks, and compute the labels of all tracks; what exists is read.

    The main process fits, and each process labels its share of the tracks.

    Args:
        config: All settings.
        splits: Tracks by split.
        grid: Frames of the backbone.
        run: Run.

    Returns:
        The labels, None for an objective without labels; and the tracks by split, without those that
        ``data.on_bad_track`` skips as they have no labels.

    Raises:
        UserError: Clusters or labels cannot be computed, or codes are not those of the run that resumes; the
            same on every process.
    """
    if config.objective != "masked_prediction":
        return None, splits
    settings, accelerator = config.masked_prediction, run.accelerator
    trained = [*splits["train"], *splits.get(REPLAY, [])]
    problem: UserError | None = None
    if run.is_main_process:
        try:
            clusters = find_clusters(
                settings, trained, grid=grid, seed=config.run.seed, kept=run.folder.clusters
            )
        except UserError as error:
            problem = error
    [problem] = broadcast_object_list([problem])
    if problem is not None:
        raise UserError(str(problem), code=problem.code)
    if not run.is_main_process:  # of the cache, or a file
        clusters = find_clusters(
            settings,
            trained,
            grid=grid,
            seed=config.run.seed,
            kept=run.folder.clusters,
            show_progress=False,
        )
    everything = [one for members in splits.values() for one in members]
    own = everything[accelerator.process_index :: accelerator.num_processes]
    failure: UserError | None = None
    try:
        label_tracks(settings, own, clusters, show_progress=run.is_main_process)
    except UserError as error:
        failure = error
    failures = [one for one in gather_object([failure]) if one is not None]
    if failures:
        raise UserError(str(failures[0]), code=failures[0].code)
    # All exist now, but for those that cannot be read.
    labels = label_tracks(settings, everything, clusters, show_progress=False)
    # A resumed run keeps all of its initial tracks, and their codes.
    labels.require_all(on_bad_track="stop" if run.has_checkpoint else config.data.on_bad_track)
    run.labels = labels.hashes_of_codes()
    if run.has_checkpoint:
        require_same_labels(run.folder.tracks, run.labels)
    entropies = labels.entropies(trained)
    logger.info(
        "Entropy of the labels of the training tracks, in nats: %s.",
        ", ".join(f"{name} {value:.2f}" for name, value in entropies.items()),
    )
    low = [name for name, value in entropies.items() if value < settings.min_label_entropy]
    if low:
        logger.warning(
            "The labels of %s are almost all the same: there is nothing to learn from them. Check the audio, "
            "or the files of masked_prediction.codes.",
            ", ".join(low),
        )
    return labels, _labelled_splits(labels, splits)


def _labelled_splits(
    labels: TrackLabels, splits: dict[str, list[CheckedTrack]]
) -> dict[str, list[CheckedTrack]]:
    """Return the tracks that have labels, and name the others; raise `UserError` if a split has none."""
    labelled = {}
    for name, members in splits.items():
        labelled[name] = [one for one in members if one.track.id in labels.paths]
        missing = [
            labels.problems[one.track.id] for one in members if one.track.id in labels.problems
        ]
        if missing and not labelled[name]:
            title = f"No track of the split {name} has labels"
            advice = "Repair them, or name other music."
            raise UserError(problem_list(title, missing, advice), code="labels-missing")
        if missing:
            logger.warning(
                "Skipped, as they have no labels: %d of %d tracks of the split %s: %s",
                len(missing),
                len(members),
                name,
                "; ".join(missing),
            )
    return labelled


def keep_clusters(labels: TrackLabels | None, run: Run) -> None:
    """Write the clusters of a new run to its folder, so that a resumed run has the same labels."""
    if labels is None or not labels.clusters.centres or run.folder.clusters.is_file():
        return
    if run.is_main_process:
        labels.clusters.save(run.folder.clusters)
