"""Tables of the tasks in the documentation, from the tasks themselves.

`reference_tables` puts these texts between the markers of the pages; a test compares.
"""

import difflib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from example_predictions import EXAMPLES, PREDICTIONS

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.cli import build_parser
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.benchmarks import BENCHMARKS
from m2v_finetune.labels.keys import KEYS
from m2v_finetune.settings import config_class, read_config
from m2v_finetune.tasks import TASKS, Task
from m2v_finetune.tasks.classification import Classification
from m2v_finetune.tasks.clips import EvaluatedClip
from m2v_finetune.tasks.tagging import WORDS_CHANGED_BY

REPOSITORY = Path(__file__).parents[2]
T = TypeVar("T")

ANSWERS = {
    "tagging": "any number of labels, each with a probability",
    "genre": "one class of many",
    "key": "one of 24 keys",
    "emotion": "numbers, such as arousal and valence",
    "instrument": "one class of many, of a note",
    "pitch": "the MIDI number of a note",
    "singer": "one class of many, of a recording",
    "technique": "one class of many, of a recording",
    "beats": "times of beats and downbeats, tempo",
    "chords": "segments of major and minor triads, or none",
    "structure": "sections with a label",
    "melody": "the pitch of the melody, or none",
    "transcription": "notes of the 88 pitches of a piano",
    "separation": "a waveform for each stem",
}
SHORT_METRICS = {
    "tagging": "ROC-AUC, average precision",
    "genre": "accuracy, macro F1",
    "key": "MIREX weighted score, accuracy, kinds of errors",
    "emotion": "R2, RMSE",
    "instrument": "accuracy, macro F1",
    "pitch": "accuracy, also within an octave class",
    "singer": "accuracy, macro F1",
    "technique": "accuracy, macro F1",
    "beats": "F-measure, CMLt, AMLt of both; tempo accuracy 1 and 2",
    "chords": "weighted chord symbol recall: major and minor, root",
    "structure": "boundary F1 within 0.5 and 3 s, pairwise F1",
    "melody": "overall, raw pitch and raw chroma accuracy; voicing recall and false alarms",
    "transcription": "F1 of notes and of frames",
    "separation": "SDR, SI-SDR",
}
LAST_ADDED = "technique"
OUTPUT_FILES = {
    ".beats": "`.beats`",
    ".lab": "`.lab`",
    ".txt": "`.txt`",
    ".csv": "`.csv`",
    ".mid": "MIDI",
    "": "WAV files",
}


def row_of(name: str, table: dict[str, T], task: str) -> T:
    """The row of a task in a table."""
    if task not in table:
        raise SystemExit(f"{task} has no row in {name} of docs/tables. Write one.")
    return table[task]


def example_tasks() -> dict[str, Task]:
    """A task of each kind, with labels that no word of `WORDS_CHANGED_BY` stands in."""
    classes = {"labels": ("a", "b", "c")}
    settings = {
        **{name: classes for name, task in TASKS.items() if issubclass(task, Classification)},
        "tagging": classes,
        "structure": classes,
        "key": {"labels": KEYS},
        "pitch": {"labels": ("60", "61", "72")},
        "emotion": {
            "labels": ("arousal", "valence"),
            "means": (0.0, 0.0),
            "stds": (1.0, 1.0),
        },
        "transcription": {"sustain": True},
        "separation": {
            "stems": ("vocals", "drums", "bass", "other"),
            "sample_rate": 44_100,
            "num_channels": 2,
        },
    }
    return {
        name: TASKS[name](
            **settings.get(name, {}),
            **({} if name == "emotion" else {"label_column": default_columns(name)[0]}),
        )
        for name in TASKS
    }


def default_columns(name: str) -> list[str]:
    """The columns that a recipe reads unless its settings name others."""
    task_config = config_class(name).__dataclass_fields__["task"].default_factory()
    return list(getattr(task_config, "target_columns", [task_config.label_column]))


def quickstart_of(name: str) -> str:
    return read_config(name, []).data.source


def data_sets_of(name: str) -> list[str]:
    return [key for key, benchmark in BENCHMARKS.items() if name in benchmark.recipes]


def configs_of(name: str) -> list[str]:
    """The configs of a task for published data, without the method that ends their names."""
    files = (REPOSITORY / "configs" / name).glob("*-*.yaml")
    return sorted({file.stem.rpartition("-")[0] for file in files})


def tasks_table() -> str:
    """Every task with its column, recipe, data sets, metrics and what is written of a file."""
    lines = [
        "| task | answer | column | data sets | best epoch by | `m2v predict` writes |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in example_tasks().items():
        columns = ", ".join(f"`{column}`" for column in default_columns(name))
        sets = ", ".join(data_sets_of(name))
        metric = task.metric_names[task.selection_metric]
        answer = row_of("ANSWERS", ANSWERS, name)
        formats = ", ".join(
            kind if suffix is None else OUTPUT_FILES[suffix]
            for kind, suffix in task.formats.items()
        )
        lines.append(
            f"| [{name}](#{name}) | {answer} | {columns} | {sets} | {metric} | {formats} |"
        )
    return "\n".join(lines)


def short_table() -> str:
    """Every task in a line, for the README."""
    lines = [
        "| task | recipe | data sets | metrics | `m2v predict` writes |",
        "|---|---|---|---|---|",
    ]
    for name, task in example_tasks().items():
        own = [OUTPUT_FILES[suffix] for suffix in task.formats.values() if suffix is not None]
        written = "JSON, " + (own[0] if own else "CSV")
        metrics = row_of("SHORT_METRICS", SHORT_METRICS, name)
        lines.append(
            f"| [{name}](docs/tasks.md#{name}) | `recipes/{name}.py` | {', '.join(data_sets_of(name))} "
            f"| {metrics} | {written} |"
        )
    return "\n".join(lines)


def facts_table(name: str) -> str:
    """What one section of docs/tasks.md says of recipe, data, head and augmentation."""
    task = example_tasks()[name]
    allowed, transformed = task.allowed_effects(), task.transformed_effects()

    def named(effects: frozenset[Effect]) -> str:
        return ", ".join(e.name.lower() for e in Effect if e in effects) or "none"

    sets = "; ".join(f"`m2v data prepare {key} --root data/{key}`" for key in data_sets_of(name))
    configs = ", ".join(f"`{config}`" for config in configs_of(name))
    methods = "each with `-probe`, `-lora` and `-full`"
    windows = {1.0: "a window", 0.5: "half a window"}[task.hop_fraction]
    rows = {
        "recipe": f"`accelerate launch recipes/{name}.py --data.source songs.csv`",
        "quickstart": f"`accelerate launch recipes/{name}.py`, on `{quickstart_of(name)}`",
        "data sets": sets or "none yet",
        "configs": f"in `configs/{name}/`: {configs}; {methods}" if configs else "the quickstart",
        "head": task.describe_head(HeadConfig(kind=task.head_kind)),
        "windows of a track": f"{windows} apart"
        + (", each beginning at a frame of one grid" if task.on_frames else ""),
        "augmentation": f"allowed: {named(allowed)}. Labels follow: {named(transformed)}. "
        f"Refused: {named(frozenset(Effect) - allowed - transformed)}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in rows.items())])


def example_evaluated(name: str) -> list:
    """What the task found out about two tracks, for the sake of the names in a report."""
    task = example_tasks()[name]
    if name == "separation":
        return [{stem: {"sdr": 5.0, "si_sdr": 4.0} for stem in task.stems}] * 2
    if name == "chords":
        keys = (*task.metric_names, *(f"{key}_seconds" for key in task.metric_names))
        return [dict.fromkeys(keys, 1.0)] * 2
    if name in ("beats", "structure", "melody", "transcription"):
        return [dict.fromkeys(task.metric_names, 1.0)] * 2
    num_labels = len(task.labels)
    scores = np.eye(2, num_labels, dtype=np.float32)
    targets = {"tagging": scores, "emotion": scores}.get(name, np.arange(2, dtype=np.float32))
    return [
        EvaluatedClip(target=np.asarray(target), scores=row)
        for target, row in zip(targets, scores, strict=True)
    ]


def metrics_table(name: str) -> str:
    """Every metric of a task by its key, and what the task says about their definition."""
    task = example_tasks()[name]
    report = task.summarize(example_evaluated(name), seed=0)
    assert report["metrics"].keys() == task.metric_names.keys()
    lines = ["| in `results.json` | metric |", "|---|---|"]
    lines += [f"| `{key}` | {text} |" for key, text in task.metric_names.items()]
    # In results.json `seconds` is how long training and test took.
    others = [key for key in report if key not in ("metrics", "about_metrics", "seconds")]
    own = f" Also: {', '.join(f'`{key}`' for key in others)}." if others else ""
    return "\n".join([*lines, "", report["about_metrics"] + own])


def effects_of_tasks_table() -> str:
    """For every task and effect, whether labels stay true, follow, or forbid it."""
    names = [effect.name.lower() for effect in Effect]
    lines = [f"| task | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, task in example_tasks().items():
        allowed, transformed = task.allowed_effects(), task.transformed_effects()
        cells = [
            "allowed"
            if effect in allowed
            else "labels follow"
            if effect in transformed
            else "refused"
            for effect in Effect
        ]
        if name == "tagging":
            cells = [
                "by the tags" if e in WORDS_CHANGED_BY else cell
                for e, cell in zip(Effect, cells, strict=True)
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def transcript(name: str) -> str:
    """What one sees of `m2v predict` in a terminal, by the options that `EXAMPLES` has for a task."""
    lines = [
        line for options in row_of("EXAMPLES", EXAMPLES, name) for line in _shown(name, options)
    ]
    return "\n".join(["```text", *lines, "```"])


def _shown(name: str, options: str) -> Iterator[str]:
    """Yield a command, and what it prints or writes of the example's prediction."""
    file, predict = PREDICTIONS[name]
    command = f"m2v predict runs/{name}/model {file} {options}".strip()
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    kind = arguments.format or next(iter(TASKS[name].formats))
    suffix = TASKS[name].formats[kind]
    yield f"$ {command}"
    if suffix is None:
        yield (
            predict()
            .render(
                kind,
                path=Path(file),
                top=arguments.top,
                timeline=arguments.timeline,
                is_first=True,
            )
            .rstrip()
            .replace("\r\n", "\n")
        )
        return
    location = Path(arguments.output) / f"{Path(file).stem}{suffix}"
    yield str(location)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / location.name
        predict().write(kind, written)
        if written.is_dir():
            yield f"$ ls {location}"
            yield "  ".join(sorted(path.name for path in written.iterdir()))
        elif suffix != ".mid":
            yield f"$ cat {location}"
            yield written.read_text(encoding="utf-8").rstrip()


def last_added() -> str:
    """The diff that adds a task: the one of `LAST_ADDED`, as its files are."""
    title = LAST_ADDED.title()
    register = Path("m2v_finetune/tasks/__init__.py")
    after = (REPOSITORY / register).read_text(encoding="utf-8").splitlines()
    before = [line for line in after if title not in line]
    diff = [*file_diff(register, before, after)]
    for path in (
        f"m2v_finetune/tasks/{LAST_ADDED}.py",
        f"recipes/{LAST_ADDED}.py",
        f"configs/{LAST_ADDED}/quickstart.yaml",
    ):
        diff += file_diff(
            Path(path), None, (REPOSITORY / path).read_text(encoding="utf-8").splitlines()
        )
    return "\n".join(["```diff", *diff, "```"])


def file_diff(path: Path, before: list[str] | None, after: list[str]) -> list[str]:
    """Return the diff of a file, a new one where there was none before."""
    old = "/dev/null" if before is None else f"a/{path.as_posix()}"
    lines = difflib.unified_diff(before or [], after, old, f"b/{path.as_posix()}", n=2, lineterm="")
    # Without line numbers, which other additions change.
    return ["@@" if line.startswith("@@") else line for line in lines]
