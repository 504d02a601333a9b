"""The command `m2v`: what one does beside training.

Heavy imports stand inside the subcommands, so that `--help` and errors come at once.
"""

import argparse
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from m2v_finetune import __version__
from m2v_finetune.errors import AudioError, Stopped, UserError, run_command

if TYPE_CHECKING:
    from m2v_finetune.model import TaskModel

DESCRIPTION = """\
Beside the recipes (accelerate launch recipes/tagging.py --help), which train:

  m2v backbones                              what loads by a short name
  m2v data prepare magnatagatune --root DIR  make a benchmark ready to train on
  m2v data check songs.csv                   look at every file of your own data
  m2v data convert songs.csv                 decode it once, so that training waits less for data
  m2v plan --config FILE --memory 11GB       what a run will take, and the batches that fit
  m2v predict MODEL song.mp3                 what a model says of music files
  m2v evaluate MODEL songs.csv               the metrics of a model on labelled tracks
  m2v push runs/tagging-.../model me/tagger  put a trained model on the Hub
  m2v benchmark --backbone X --root DIR      probe a backbone on every task, beside published numbers
"""

OUTSIDE_HELP = "let relative paths of the manifest lead out of its folder"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand and end the process with its exit code (`run_command`)."""
    parser = build_parser()
    arguments, settings = parser.parse_known_args(argv)
    if settings and arguments.command is not _plan:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    arguments.settings = settings
    run_command(lambda: arguments.command(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="m2v", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"m2v-finetune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    backbones = commands.add_parser("backbones", help="list what loads by a short name")
    backbones.set_defaults(command=_backbones)

    data = commands.add_parser("data", help="prepare or check data")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    prepare = data_commands.add_parser(
        "prepare",
        help="fetch the labels of a benchmark, check its audio, write its manifest",
        description="Audio has to be fetched by hand; the command says from where, and where to put it.",
    )
    prepare.add_argument("name", help="such as gtzan; any other word lists all")
    prepare.add_argument("--root", type=Path, required=True, help="folder of the data set")
    prepare.add_argument(
        "--on-bad-track", choices=["stop", "skip"], default="stop", help="(default: %(default)s)"
    )
    prepare.add_argument(
        "--without-audio",
        action="store_true",
        help="write the manifest from the labels alone, for vectors that were computed elsewhere "
        "(--data.features of a recipe)",
    )
    prepare.set_defaults(command=_prepare)
    check = data_commands.add_parser("check", help="look at every audio file of a data source")
    check.add_argument("source", help="manifest, folder or Hub id, as --data.source of a recipe")
    check.add_argument("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    check.set_defaults(command=_check)
    convert = data_commands.add_parser(
        "convert",
        help="decode a set once, so that recipes wait less for data",
        description="Writes a mono copy of every file at the rate of a backbone, with checksums, to "
        "~/.cache/m2v-finetune/audio (or below the folder that the environment variable M2V_CACHE names). "
        "Recipes find the copies by themselves, and read the file itself where it has changed since. Your "
        "files are only read. Stop it whenever you like: the same command goes on. Delete the folder "
        "to be rid of the copies.",
        epilog="Worth it for MP3, Ogg and M4A, and for anything that is not at the backbone's rate. "
        "Separation reads stereo at its own rate, and uses no copies.",
    )
    convert.add_argument("source", help="manifest, folder or Hub id, as --data.source of a recipe")
    convert.add_argument(
        "--backbone",
        default="music2vec-v1",
        help="whose rate the copies have, as --backbone.source of a recipe: a name that `m2v backbones` "
        "lists, a folder or a Hub id (default: %(default)s)",
    )
    convert.add_argument(
        "--format",
        choices=["flac", "wav"],
        default="flac",
        help="both of 16 bits; flac takes about half the space, wav is read faster (default: %(default)s)",
    )
    convert.add_argument(
        "--processes",
        type=_count,
        default=os.cpu_count() or 1,
        help="that decode side by side (default: one for each core, %(default)s)",
    )
    convert.add_argument(
        "--on-bad-track",
        choices=["stop", "skip"],
        default="stop",
        help="what to do about files that cannot be read: list them all and stop, or convert the others "
        "(default: %(default)s)",
    )
    convert.add_argument(
        "--verify",
        action="store_true",
        help="compare checksums of files and copies, not sizes and dates alone, and write again what differs",
    )
    convert.add_argument("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    convert.set_defaults(command=_convert)

    plan = commands.add_parser(
        "plan",
        help="the memory that a run will take, and the batches that fit",
        description="Counts one optimiser step on tensors without values: no card, no data and no weights "
        "are needed. Settings of the recipe may follow, such as --tuning.method full.",
    )
    plan.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="as of a recipe; may be repeated",
    )
    plan.add_argument(
        "--task", help="such as tagging, or pretrain; by default the name of the last file's folder"
    )
    plan.add_argument(
        "--memory",
        help="of each device, such as 11GB (decimal), 10GiB (binary) or 8e9; by default run.memory of the "
        "settings",
    )
    plan.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)"
    )
    plan.add_argument(
        "--processes",
        type=_count,
        default=1,
        help="that share a total batch (default: %(default)s)",
    )
    plan.set_defaults(command=_plan)

    predict = commands.add_parser(
        "predict",
        help="say what a model hears in music files",
        description="Prints what the model says of each track, or writes it in the formats of its task: "
        ".beats, .lab, MIDI, WAV.",
    )
    predict.add_argument("model", help="a folder, such as model/ of a run, or a Hub id")
    predict.add_argument("files", nargs="+", type=Path, help="music files of any length")
    predict.add_argument(
        "--timeline", action="store_true", help="also what is said of each window of the track"
    )
    predict.add_argument(
        "--format",
        help="text (the default), json or csv are printed; a model may have others, such as beats, lab, midi "
        "or wav, which are written to files",
    )
    predict.add_argument(
        "--top", type=_count, default=10, help="labels to show in text (default: %(default)s)"
    )
    predict.add_argument(
        "--output",
        type=Path,
        help="a new file for what would be printed; for formats with files of their own, their folder",
    )
    predict.set_defaults(command=_predict)

    evaluate = commands.add_parser("evaluate", help="measure a model on labelled tracks")
    evaluate.add_argument("model", help="a folder, such as model/ of a run, or a Hub id")
    evaluate.add_argument("source", help="manifest, folder or Hub id with the labels")
    evaluate.add_argument(
        "--split",
        default="test",
        help="train, validation or test; ignored if the data have no split (default: %(default)s)",
    )
    evaluate.add_argument("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    evaluate.set_defaults(command=_evaluate)

    push = commands.add_parser(
        "push", help="put a trained model, or a pre-trained backbone, on the Hugging Face Hub"
    )
    push.add_argument("folder", type=Path, help="model/ of a run")
    push.add_argument("repo_id", help="such as me/my-tagger")
    push.add_argument("--private", action="store_true", help="if the repository is created")
    push.set_defaults(command=_push)

    benchmark = commands.add_parser(
        "benchmark",
        help="probe a backbone on every task whose data are there, beside published numbers",
        description="Runs the published probe protocol on each data set that `m2v data prepare` made ready. "
        "Stop it whenever you like: the same command goes on. docs/benchmarking.md says more.",
    )
    benchmark.add_argument(
        "--backbone",
        required=True,
        help="as --backbone.source of a recipe; with --features the name of the vectors, such as jukebox",
    )
    benchmark.add_argument(
        "--root",
        type=Path,
        required=True,
        help="holds a folder for each data set, with its manifests",
    )
    benchmark.add_argument(
        "--features",
        type=Path,
        help="read vectors that were computed elsewhere, in DATA_SET/BACKBONE/CLIP.npy below this folder",
    )
    benchmark.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="only these, such as genre key"
    )
    benchmark.add_argument(
        "--seeds", type=_count, default=3, help="runs by the best rate (default: %(default)s)"
    )
    benchmark.add_argument(
        "--output", type=Path, help="folder of runs and tables (default: benchmarks-BACKBONE)"
    )
    benchmark.set_defaults(command=_benchmark)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def _backbones(arguments: argparse.Namespace) -> None:
    from m2v_finetune.backbones.checkpoints import CHECKPOINTS

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("layers", justify="right")
    table.add_column("width", justify="right")
    table.add_column("Hz", justify="right")
    table.add_column("frames/s", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("pre-training")
    for name, known in CHECKPOINTS.items():
        numbers = (known.num_layers, known.hidden_size, known.sample_rate, known.frame_rate)
        table.add_row(name, *map(str, numbers), known.licence, known.pretraining)
    console = Console()
    console.print(table)
    console.print(
        "The two small ones ship, the others are on the Hub under m-a-p/. Any other HuBERT, wav2vec 2.0 or "
        "data2vec audio checkpoint loads by its Hub id or folder."
    )


def _prepare(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.benchmarks import BENCHMARKS, prepare_benchmark

    if arguments.name not in BENCHMARKS:
        raise UserError(
            f"There is no data set '{arguments.name}' to prepare. There are: {', '.join(BENCHMARKS)}."
        )
    benchmark = BENCHMARKS[arguments.name]
    for made in prepare_benchmark(
        benchmark,
        arguments.root,
        on_bad_track=arguments.on_bad_track,
        with_audio=not arguments.without_audio,
    ):
        skipped = f", {made.num_skipped} skipped" if made.num_skipped else ""
        print(f"{made.path}: {made.num_tracks} tracks{skipped}")
    print(f"Licence: {benchmark.info.licence}")
    recipes = " or ".join(f"recipes/{task}.py, configs/{task}/" for task in benchmark.recipes)
    print(f"Train on it: {recipes}, with --data.source as above.")


def _check(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_splits, check_tracks
    from m2v_finetune.data.manifest import SPLITS
    from m2v_finetune.data.sources import load_tracks

    tracks, dataset = load_tracks(
        arguments.source, label_column="tags", allow_outside=arguments.allow_outside
    )
    found = {name: [track for track in tracks if track.split == name] for name in SPLITS}
    splits = {name: members for name, members in found.items() if members}
    if splits:
        usable, _ = check_splits(splits, on_bad_track="stop")
        checked = [one for members in usable.values() for one in members]
    else:
        checked, _ = check_tracks(tracks, on_bad_track="stop")
    hours = sum(item.audio.duration_seconds for item in checked) / 3600
    print(f"{dataset.name}: all {len(checked)} tracks can be read ({hours:.2f} h).")


def _convert(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_tracks, stop_or_skip
    from m2v_finetune.data.converting import convert_tracks
    from m2v_finetune.data.sources import load_tracks

    def stop(number: int, frame: object) -> None:
        raise Stopped(
            number, "Stopped. The copies that are written stay; the same command goes on."
        )

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    sample_rate = _rate_of(arguments.backbone)
    tracks, dataset = load_tracks(
        arguments.source,
        label_column=None,
        allow_outside=arguments.allow_outside,
        max_failing_fraction=float(arguments.on_bad_track == "skip"),
    )
    checked, _ = check_tracks(tracks, on_bad_track=arguments.on_bad_track)
    done = convert_tracks(
        checked,
        sample_rate=sample_rate,
        copy_format=arguments.format,
        num_processes=arguments.processes,
        verify=arguments.verify,
    )
    num_copies = done.num_written + done.num_kept
    hours = sum(one.audio.duration_seconds for one in checked) / 3600
    print(
        f"{dataset.name}: {num_copies} of {len(tracks)} tracks ({hours:.2f} h) have a copy, mono at "
        f"{sample_rate} Hz in 16-bit {arguments.format.upper()}: {done.num_written} written in "
        f"{done.seconds:.1f} s, {done.num_kept} there already{', verified' if arguments.verify else ''}."
    )
    print(
        f"Files: {done.original_bytes / 1e6:,.1f} MB; copies: {done.copy_bytes / 1e6:,.1f} MB in "
        f"{done.folder}"
    )
    stop_or_skip(
        done.problems,
        num_tracks=len(tracks),
        is_any_left=num_copies > 0,
        on_bad_track=arguments.on_bad_track,
    )
    print(
        "Recipes with a backbone of this rate read the copies by themselves; their first log says so."
    )


def _rate_of(backbone: str) -> int:
    """Return the sample rate of a backbone, by its name if that is known."""
    from m2v_finetune.backbones import bare_backbone
    from m2v_finetune.backbones.checkpoints import published_checkpoint

    published = published_checkpoint(backbone)
    return published.sample_rate if published else bare_backbone(backbone).sample_rate


def _plan(arguments: argparse.Namespace) -> None:
    from m2v_finetune.config import PretrainingConfig, parse_bytes
    from m2v_finetune.parsing import parse_recipe, recipe_config
    from m2v_finetune.tasks import TASK_SETTINGS, TASKS
    from m2v_finetune.training.counted_step import Machine
    from m2v_finetune.training.plan import plan_run
    from m2v_finetune.training.plan_tables import show_plan
    from m2v_finetune.training.precision import BF16_CAPABILITY, choose_precision

    for file in arguments.config:
        if not file.is_file():
            raise UserError(f"There is no file {file}. Give the settings of a recipe by --config.")
    name = arguments.task or arguments.config[-1].resolve().parent.name
    if name not in (*TASKS, "pretrain"):
        raise UserError(
            f"There is no task '{name}'. Name one by --task: {', '.join(TASKS)}, or pretrain. Without it, "
            "the folder of the file has to have its name, as in configs/tagging/."
        )
    is_task = name in TASKS
    config_class: type[Any] = recipe_config(TASK_SETTINGS[name]) if is_task else PretrainingConfig
    config = parse_recipe(
        config_class,
        [*(f"--config={file}" for file in arguments.config), *arguments.settings],
        description="",
        quickstart=Path(),
    )
    on_card = arguments.device == "cuda"
    # Of cards that compute in float16 only, unless the settings ask for bfloat16, which takes the same.
    capability = BF16_CAPABILITY if config.training.mixed_precision == "bf16" else (7, 5)
    machine = Machine(
        on_card=on_card,
        precision=choose_precision(
            config.training.mixed_precision, capability=capability if on_card else None
        ),
        num_processes=arguments.processes,
    )
    memory = arguments.memory or config.run.memory
    task = TASKS[name].from_settings(config.task) if is_task else None
    plan = plan_run(
        config, task, machine, memory_bytes=parse_bytes("--memory", memory) if memory else None
    )
    assumed = ""
    if task is not None and getattr(config.task, "labels", ()) is None:
        assumed = f" {task.num_outputs} labels are assumed, as the data name them."
    Console().print(show_plan(plan, assumed=assumed))
    if plan.memory_bytes is not None and plan.chosen is None:
        raise UserError(plan.refusal())


def _predict(arguments: argparse.Namespace) -> None:
    from m2v_finetune.audio.decode import inspect_audio
    from m2v_finetune.data.manifest import problem_list
    from m2v_finetune.model import TaskModel

    output: Path | None = arguments.output
    if output is not None and not output.parent.is_dir():
        raise UserError(f"There is no folder {output.parent} for --output. Make it first.")
    problems = []  # every unreadable file is named before the model is loaded
    for path in arguments.files:
        try:
            inspect_audio(path)
        except AudioError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            problem_list("Files that cannot be read", problems, "Repair them, or leave them out.")
        )
    import torch

    model = TaskModel.from_pretrained(arguments.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    formats = model.task.formats
    kind = arguments.format or next(iter(formats))
    if kind not in formats:
        raise UserError(
            f"There is no format '{kind}' for {model.task.name}. There are: {', '.join(formats)}."
        )
    suffix = formats[kind]
    if suffix is None:
        _print_predictions(model, kind, arguments)
    else:
        _write_predictions(model, kind, suffix, arguments)


def _print_predictions(model: "TaskModel", kind: str, arguments: argparse.Namespace) -> None:
    """Print what is said of each file, or write it all to one new file."""
    output: Path | None = arguments.output
    if output is not None and output.exists():
        raise UserError(f"{output} exists, and is not overwritten. Name a new file.")
    parts: list[str] = []
    for path in arguments.files:
        part = model.predict(path).render(
            kind,
            path=path,
            top=arguments.top,
            timeline=arguments.timeline,
            is_first=not parts,
        )
        parts.append(part)
        if output is None:
            print(part, end="", flush=True)
    if output is not None:
        output.write_text("".join(parts), encoding="utf-8")


def _write_predictions(
    model: "TaskModel", kind: str, suffix: str, arguments: argparse.Namespace
) -> None:
    """Write a file, or folder, for each music file, into the folder ``--output``."""
    folder: Path | None = arguments.output
    if folder is None:
        raise UserError(f"The format '{kind}' is written to files. Name their folder by --output.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file. The format '{kind}' needs a folder.")
    places = [folder / f"{path.stem}{suffix}" for path in arguments.files]
    taken = [str(place) for place in places if place.exists() or places.count(place) > 1]
    if taken:
        raise UserError(
            f"These would be written, but exist or would be written twice: {', '.join(taken)}. Nothing is "
            "overwritten; choose another folder by --output."
        )
    folder.mkdir(exist_ok=True)
    for path, place in zip(arguments.files, places, strict=True):
        model.predict(path).write(kind, place)
        print(place, flush=True)


def _evaluate(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_tracks
    from m2v_finetune.data.converting import with_copies
    from m2v_finetune.data.sources import load_tracks
    from m2v_finetune.model import TaskModel
    from m2v_finetune.training.results import measure

    model = TaskModel.from_pretrained(arguments.model)
    model.require_hearing()
    tracks, dataset = load_tracks(
        arguments.source,
        label_column=model.task.label_column,
        allow_outside=arguments.allow_outside,
    )
    chosen = [track for track in tracks if track.split in (None, arguments.split)]
    if not chosen:
        raise UserError(f"{dataset.name} has no track in the split '{arguments.split}'.")
    model.task.check_labels(chosen)
    checked, _ = check_tracks(chosen, on_bad_track="stop")
    if model.task.sample_rate is None:
        checked = with_copies(checked, sample_rate=model.backbone.sample_rate)
    print(json.dumps(measure(model, checked), indent=2, ensure_ascii=False))


def _push(arguments: argparse.Namespace) -> None:
    from m2v_finetune.backbones import is_backbone, load_backbone
    from m2v_finetune.model import TaskModel, upload_model

    if not arguments.folder.is_dir():
        raise UserError(f"There is no folder {arguments.folder}. Name model/ of a run.")
    # Only what is whole is pushed.
    if is_backbone(arguments.folder):
        load_backbone(arguments.folder)
    else:
        TaskModel.from_pretrained(arguments.folder)
    print(
        f"Pushed to {upload_model(arguments.folder, arguments.repo_id, private=arguments.private)}"
    )


def _benchmark(arguments: argparse.Namespace) -> None:
    from m2v_finetune.benchmarking import BenchmarkSettings, run_benchmark

    settings = BenchmarkSettings(
        backbone=arguments.backbone,
        root=arguments.root,
        features=arguments.features,
        tasks=tuple(arguments.tasks or ()),
        num_seeds=arguments.seeds,
        output=arguments.output,
    )
    run_benchmark(settings)
