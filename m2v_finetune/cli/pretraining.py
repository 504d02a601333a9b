"""`m2v pretrain-labels`: labels before a run."""

import argparse
from pathlib import Path

from m2v_finetune.cli.options import Commands


def add_commands(commands: Commands) -> None:
    """Add `pretrain-labels` to the parser's subcommands."""
    labels = commands.add_parser(
        "pretrain-labels",
        help="fit clusters and compute the labels of masked prediction, before a run",
        description="Takes the settings of recipes/pretrain.py, such as --config FILE and --data.source "
        "MUSIC; the objective is masked_prediction. Fits the clusters to the training tracks that the run "
        "would have, and computes the labels of all its tracks. Both are kept below "
        "~/.cache/m2v-finetune/labels (or the folder that the environment variable M2V_CACHE names), and "
        "the run reads them. You can stop it at any time: the same command resumes.",
    )
    labels.add_argument(
        "--output",
        type=Path,
        help="file of the clusters, such as clusters.safetensors, for masked_prediction.clusters of other "
        "runs",
    )
    labels.set_defaults(command=_labels, takes_settings=True)


def _labels(arguments: argparse.Namespace) -> None:
    import torch

    from m2v_finetune.data.checking import check_splits
    from m2v_finetune.data.resampling import with_resampled
    from m2v_finetune.errors import UserError
    from m2v_finetune.files import why_unwritable
    from m2v_finetune.pretraining.masked_prediction.labels import find_clusters, label_tracks
    from m2v_finetune.pretraining.model import backbone_without_weights
    from m2v_finetune.pretraining.replay import REPLAY, replay_split
    from m2v_finetune.settings import read_config
    from m2v_finetune.training.run_tracks import load_splits
    from m2v_finetune.training.starting import start_logging

    if arguments.output is not None and arguments.output.exists():
        raise UserError(
            f"{arguments.output} exists, and is not overwritten. Name another file.",
            code="clusters-file-exists",
        )
    if arguments.output is not None and (why := why_unwritable(arguments.output.parent)):
        raise UserError(
            f"--output {arguments.output} cannot be written: {why}.", code="clusters-not-writable"
        )
    config = read_config("pretrain", [*arguments.settings, "--objective=masked_prediction"])
    sizes = config.masked_prediction.label_sizes()
    if arguments.output is not None and all(name.startswith("codes_") for name in sizes):
        raise UserError(
            "--output is the file of clusters, and there are none: log_mel_clusters and chroma_clusters are "
            "0. Leave it out.",
            code="settings-conflict",
        )
    start_logging()
    tracks_by_split, dataset = load_splits(config.data, label_column=None, seed=config.run.seed)
    tracks_by_split |= replay_split(config.data)[0]
    checked, _ = check_splits(
        tracks_by_split,
        on_bad_track=config.data.on_bad_track,
        timeout_seconds=config.data.timeout_seconds,
    )
    with torch.device("meta"):
        grid = backbone_without_weights(config.backbone).frame_grid
    splits = {
        name: with_resampled(members, sample_rate=grid.sample_rate)
        for name, members in checked.items()
    }
    trained = [*splits["train"], *splits.get(REPLAY, [])]
    clusters = find_clusters(config.masked_prediction, trained, grid=grid, seed=config.run.seed)
    everything = [one for members in splits.values() for one in members]
    labels = label_tracks(config.masked_prediction, everything, clusters)
    labels.require_all(on_bad_track=config.data.on_bad_track)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        clusters.save(arguments.output)
    entropies = labels.entropies(trained)
    print(f"{dataset.name}: {len(labels.paths)} of {len(everything)} tracks have labels.")
    for name, size in labels.sizes.items():
        print(f"{name}: {size} labels; entropy {entropies[name]:.2f} nats in the training tracks")
