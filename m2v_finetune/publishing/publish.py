"""Publishing of a run: model folder with weights, card and plots, and upload to the Hub."""

import logging
import shlex
import shutil
from collections.abc import Sequence
from typing import Any

from m2v_finetune.config import PublishConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.errors import UserError
from m2v_finetune.model import MODEL_PLACEHOLDER, TaskModel, native_usage, upload_model
from m2v_finetune.plotting.reliability import plot_reliability
from m2v_finetune.plotting.runs import plot_layer_weights, plot_training
from m2v_finetune.publishing.card import (
    LAYER_PICTURE,
    RELIABILITY_PICTURE,
    TRAINING_PICTURE,
    render_card,
    write_card,
)
from m2v_finetune.publishing.harmless import harmless
from m2v_finetune.publishing.report import write_report
from m2v_finetune.publishing.report_tracks import NUM_TIMELINES, TRACK_FOLDER, lowest
from m2v_finetune.tasks.clips import EvaluatedClip
from m2v_finetune.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def publish(
    model: TaskModel,
    folder: RunFolder,
    results: dict[str, Any],
    config: PublishConfig,
    *,
    evaluated: Sequence[Any],
    tracks: Sequence[CheckedTrack],
) -> None:
    """Write plots, model and report of a run, and push the model if the config names a repository.

    Args:
        model: Model with the weights to publish.
        folder: Folder of the run.
        results: Content of results.json.
        config: Settings of the upload.
        evaluated: Output of the task's `evaluate_track` for each test track.
        tracks: Test tracks.

    Raises:
        UserError: The push failed. The model is in the run folder, and the message has the command.
    """
    weights, native = config.weights, config.native
    model.save_pretrained(
        folder.model, weights=weights, native=native
    )  # first, as training took hours
    captions = draw_plots(model, folder, results, evaluated=evaluated, tracks=tracks)
    card_data = model.card_data(weights=weights, native=native)
    with harmless("The model card"):
        usage = native_usage(model, config.repo_id or MODEL_PLACEHOLDER) if native else ""
        card = render_card(
            folder.path, card_data, repo_id=config.repo_id, captions=captions, native_usage=usage
        )
        write_card(folder.model, card)
        model.card = card
    with harmless("The plots of the model folder"):
        shutil.copytree(
            folder.plots,
            folder.model / "plots",
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(TRACK_FOLDER.format("*")),
        )
    logger.info("The model and its card are in %s", folder.model)
    with harmless("The report"):
        write_report(folder.path)
        logger.info("Open the report in a browser: %s", folder.report)
    if config.repo_id is None:
        return
    try:
        url = upload_model(folder.model, config.repo_id, private=config.private)
    except UserError as error:
        words = ["m2v", "push", str(folder.model), config.repo_id]
        command = shlex.join([*words, "--private"] if config.private else words)
        raise UserError(
            f"{error}\nThe trained model is saved in {folder.model}. Push it later with:\n  {command}",
            code=error.code,
        ) from error
    logger.info("Pushed to %s", url)


def draw_plots(
    model: TaskModel,
    folder: RunFolder,
    results: dict[str, Any],
    *,
    evaluated: Sequence[Any],
    tracks: Sequence[CheckedTrack],
) -> dict[str, str]:
    """Plot results of a run; return the caption of each plot by file name."""
    captions = {}
    is_trained = not results["training"].get("solved_by")
    if len(results["layer_weights"]) > 1 and is_trained:
        with harmless(f"The plot {LAYER_PICTURE}"):
            plot_layer_weights(
                results["layer_weights"],
                folder.plots / LAYER_PICTURE,
                backbone=model.backbone.source,
                kind=str(model.layer_weighting.kind),
            )
            captions[LAYER_PICTURE] = "Weight of each hidden state"
    with harmless(f"The plot {TRAINING_PICTURE}"):
        plot_training(
            folder.metrics, folder.plots / TRAINING_PICTURE, metric_names=results["metric_names"]
        )
        captions[TRAINING_PICTURE] = "Loss and validation"
    if "calibration" in results:
        with harmless(f"The plot {RELIABILITY_PICTURE}"):
            plot_reliability(results["calibration"], folder.plots / RELIABILITY_PICTURE)
            captions[RELIABILITY_PICTURE] = "Reliability of the probabilities"
    with harmless(f"The plots of {model.task.name}"):
        folder.plots.mkdir(exist_ok=True)
        captions |= model.task.plot(
            folder.plots,
            results=results,
            evaluated=evaluated,
            tracks=tracks,
            predict=model.predict_track,
        )
    if not isinstance(evaluated[0], EvaluatedClip):
        with harmless("The time lines of the worst tracks"):
            for number, i in enumerate(lowest(model.task, evaluated)[:NUM_TIMELINES], start=1):
                place = folder.plots / TRACK_FOLDER.format(number)
                place.mkdir(exist_ok=True)
                model.task.plot(
                    place,
                    results=results,
                    evaluated=[evaluated[i]],
                    tracks=[tracks[i]],
                    predict=model.predict_track,
                )
    return captions
