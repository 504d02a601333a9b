"""The model folder of a run: weights, card and pictures; and its way to the Hub."""

import logging
import shlex
import shutil
from typing import Any

from m2v_finetune.config import PublishConfig
from m2v_finetune.errors import UserError
from m2v_finetune.model import CARD_FILE, TaskModel, upload_model
from m2v_finetune.publishing.card import render_card
from m2v_finetune.publishing.plots import plot_layer_weights, plot_per_label, plot_training
from m2v_finetune.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def publish(
    model: TaskModel, folder: RunFolder, results: dict[str, Any], config: PublishConfig
) -> None:
    """Write ``plots/`` and ``model/`` of a run, and push the model if the config names a repository.

    Raises:
        UserError: The push failed. The model is in the run folder, and the message says how to push it.
    """
    model.save_pretrained(folder.model, weights=config.weights)  # first what took hours to make
    draw_plots(model, folder, results)
    pictures = sorted(path.name for path in folder.plots.glob("*.png"))
    model.card = render_card(folder.path, model.card_data(), repo_id=config.repo_id, plots=pictures)
    (folder.model / CARD_FILE).write_text(model.card, encoding="utf-8")
    shutil.copytree(folder.plots, folder.model / "plots", dirs_exist_ok=True)
    logger.info("The model and its card are in %s", folder.model)
    if config.repo_id is None:
        return
    try:
        url = upload_model(folder.model, config.repo_id, private=config.private)
    except UserError as error:
        words = ["m2v", "push", str(folder.model), config.repo_id]
        command = shlex.join([*words, "--private"] if config.private else words)
        raise UserError(
            f"{error}\nThe trained model is safe in {folder.model}. Push it later with:\n  {command}"
        ) from error
    logger.info("Pushed to %s", url)


def draw_plots(model: TaskModel, folder: RunFolder, results: dict[str, Any]) -> None:
    """Draw what people would rather look at than read."""
    folder.plots.mkdir(exist_ok=True)
    plot_layer_weights(
        results["layer_weights"],
        folder.plots / "layer_weights.png",
        backbone=model.backbone.source,
        kind=str(model.layer_weighting.kind),
    )
    plot_training(
        folder.metrics, folder.plots / "training.png", metric_names=results["metric_names"]
    )
    for metric, name in results["metric_names"].items():
        path = folder.plots / f"per_label_{metric}.png"
        plot_per_label(results["per_label"], path, metric=metric, name=name)
