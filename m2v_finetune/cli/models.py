"""`m2v backbones`, `evaluate`, `merge` and `push`: list backbones; evaluate, average and upload models."""

import argparse
import json
from pathlib import Path

from rich.table import Table

from m2v_finetune.cli.options import MODEL_HELP, OUTSIDE_HELP, Commands, TableConsole
from m2v_finetune.errors import UserError


def add_commands(commands: Commands) -> None:
    """Add `backbones`, `evaluate`, `merge` and `push` to the parser's subcommands."""
    backbones = commands.add_parser("backbones", help="list the backbones with a short name")
    backbones.set_defaults(command=_backbones)

    evaluate = commands.add_parser(
        "evaluate", help="compute the metrics of a model on labelled tracks"
    )
    evaluate.add_argument("model", help=MODEL_HELP)
    evaluate.add_argument("source", help="manifest, folder or Hub id with the labels")
    evaluate.add_argument(
        "--split",
        default="test",
        help="train, validation or test; ignored if the data have no split (default: %(default)s)",
    )
    evaluate.add_argument("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    evaluate.set_defaults(command=_evaluate)

    merge = commands.add_parser(
        "merge",
        help="average the weights of models of a task, or of backbones, that had one start",
        description="Writes the mean of the weights of models of one task with the same labels and settings, "
        "or of backbones that were adapted from one checkpoint.",
    )
    merge.add_argument(
        "sources", nargs="+", metavar="MODEL", help="folder model/ of a run, or a Hub id"
    )
    merge.add_argument("--output", type=Path, required=True, help="new folder of the average")
    merge.set_defaults(command=_merge)

    push = commands.add_parser(
        "push", help="upload a trained model, or a pre-trained backbone, to the Hugging Face Hub"
    )
    push.add_argument("folder", type=Path, help="folder model/ of a run")
    push.add_argument("repo_id", help="repository, such as me/my-tagger")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.set_defaults(command=_push)


def _backbones(arguments: argparse.Namespace) -> None:
    from m2v_finetune.backbones.checkpoints import CHECKPOINTS

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("layers", justify="right")
    table.add_column("hidden size", justify="right")
    table.add_column("Hz", justify="right")
    table.add_column("frames/s", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("pre-training")
    for name, known in CHECKPOINTS.items():
        numbers = (known.num_layers, known.hidden_size, known.sample_rate, known.frame_rate)
        table.add_row(name, *map(str, numbers), known.licence, known.pretraining)
    console = TableConsole()
    console.print(table)
    console.print(
        "The two small ones are included, the others are on the Hub under m-a-p/. Any other HuBERT, "
        "wav2vec 2.0, data2vec audio or wav2vec2-conformer checkpoint loads by its Hub id or folder."
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_tracks
    from m2v_finetune.data.resampling import with_resampled
    from m2v_finetune.data.sources import load_tracks
    from m2v_finetune.model import TaskModel, require_inference
    from m2v_finetune.training.evaluation import measure

    model = TaskModel.from_pretrained(arguments.model)
    require_inference(model)
    tracks, dataset = load_tracks(
        arguments.source,
        label_column=model.task.label_column,
        allow_outside=arguments.allow_outside,
    )
    chosen = [track for track in tracks if track.split in (None, arguments.split)]
    if not chosen:
        raise UserError(
            f"{dataset.name} has no track in the split '{arguments.split}'.", code="split-empty"
        )
    model.task.check_labels(chosen)
    checked, _ = check_tracks(chosen, on_bad_track="stop", skip_option=None)
    if model.task.sample_rate is None:
        checked = with_resampled(checked, sample_rate=model.backbone.sample_rate)
    print(json.dumps(measure(model, checked), indent=2, ensure_ascii=False))


def _merge(arguments: argparse.Namespace) -> None:
    from m2v_finetune.backbones.checkpoints import CHECKPOINTS
    from m2v_finetune.hub import is_repo_id
    from m2v_finetune.path_hints import did_you_mean

    sources, output = arguments.sources, arguments.output
    if len({Path(source).resolve() for source in sources}) < len(sources):
        raise UserError(
            f"A source is named twice: {', '.join(sources)}. Name each model once.",
            code="average-same-model",
        )
    for source in sources:
        if not Path(source).exists() and source not in CHECKPOINTS and not is_repo_id(source):
            raise UserError(
                f"There is no {source}. Name the folder model/ of a run, or a Hub id."
                f"{did_you_mean(Path(source).absolute())}",
                code="model-not-found",
            )
    are_models = [_is_model(source) for source in sources]
    if all(are_models):
        from m2v_finetune.model.averaging import write_model_average

        licence = write_model_average(sources, output).backbone.licence
        usage = (
            f"m2v predict {output} song.mp3. It has no calibration: docs/starting.md has the reason"
        )
    elif any(are_models):
        kinds = [
            f"{s} ({'model' if is_model else 'backbone'})"
            for s, is_model in zip(sources, are_models, strict=True)
        ]
        raise UserError(
            f"Models of a task and backbones have no average: {', '.join(kinds)}. Give one kind.",
            code="average-other-model",
        )
    else:
        from m2v_finetune.backbones.averaging import write_average

        licence = write_average(sources, output).licence
        usage = f"--backbone.source {output}"
    print(
        f"The average of {len(sources)} {'models' if all(are_models) else 'backbones'} is in {output} "
        f"(licence: {licence or 'unknown'}). Use it by {usage}"
    )


def _is_model(source: str) -> bool:
    """Return whether a source is a model of a task, not a backbone."""
    from m2v_finetune.backbones import is_backbone
    from m2v_finetune.backbones.checkpoints import CHECKPOINTS
    from m2v_finetune.model import read_description

    if Path(source).is_dir():
        return not is_backbone(Path(source))
    if source in CHECKPOINTS:
        return False
    try:
        read_description(source)
    except UserError:
        return False  # loading it as a backbone reports what it is
    return True


def _push(arguments: argparse.Namespace) -> None:
    from m2v_finetune.backbones import is_backbone, load_backbone
    from m2v_finetune.model import TaskModel, upload_model

    if not arguments.folder.is_dir():
        raise UserError(
            f"There is no folder {arguments.folder}. Name model/ of a run.", code="model-not-found"
        )
    # Only a valid model is uploaded.
    if is_backbone(arguments.folder):
        load_backbone(arguments.folder)
    else:
        TaskModel.from_pretrained(arguments.folder)
    print(
        f"Pushed to {upload_model(arguments.folder, arguments.repo_id, private=arguments.private)}"
    )
