"""Heads that scikit-learn solves: equal to its own prediction, and saved as a linear head."""

import json

import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.messages import raises
from support.processes import run_ranks
from support.runs import read_metrics, reset_accelerate

from m2v_finetune import TaskModel
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.runs import read_config, train_task
from m2v_finetune.tasks import find_task
from m2v_finetune.training import solved_head

PENALTIES = (10.0, 1.0)
STYLES = ("rock", "waltz", "ballad")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tracks of one window (1 s) each, in all splits, but for a training track of three windows."""
    folder = tmp_path_factory.mktemp("tracks")
    left = {"train": 6, "validation": 2, "test": 2}
    counts = {(split, style): n for split, n in left.items() for style in STYLES}
    rows = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        if counts.get((row["split"], row["style"]), 0) == 0:
            continue
        counts[row["split"], row["style"]] -= 1
        samples, rate = soundfile.read(QUICKSTART_DIR / row["path"])
        is_long = row["split"] == "train" and not any(one["split"] == "train" for one in rows)
        soundfile.write(folder / f"{len(rows)}.wav", samples[: (3 if is_long else 1) * rate], rate)
        tags = [row["style"], "piano" if len(rows) % 3 else "drums"]
        own = {
            "path": f"{len(rows)}.wav",
            "split": row["split"],
            "style": row["style"],
            "tags": tags,
        }
        rows.append(own | {"arousal": len(rows) % 5, "valence": 0.1 * len(rows)})
    (folder / "songs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "songs.jsonl"


def options(manifest, folder):
    return {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "data.num_variants": 3,
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "run.output_dir": folder,
        "run.resume": "auto",
        "cache.folder": folder.parent / "cache",
    }


def train(task, manifest, folder, *words):
    reset_accelerate()
    settings = [f"--{key}={value}" for key, value in options(manifest, folder).items()]
    return train_task(read_config(task, [*settings, *words]), find_task(task))


def features(model, manifest):
    """Return row and features of each track by split."""
    found = {"train": [], "validation": [], "test": []}
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        found[row["split"]].append((row, model.embed(manifest.parent / row["path"])))
    return found


@pytest.fixture(autouse=True)
def few_penalties(monkeypatch):
    monkeypatch.setattr(solved_head, "PENALTIES", PENALTIES)


@pytest.fixture(scope="module")
def short_manifest(manifest):
    """The same without the long track, so that each track has one window."""
    lines = manifest.read_text().splitlines(keepends=True)
    long = next(line for line in lines if json.loads(line)["split"] == "train")
    path = manifest.with_name("short.jsonl")
    path.write_text("".join(line for line in lines if line != long))
    return path


@pytest.mark.slow
def test_classes_equal_scikit_learn_and_predict_from_the_saved_model(short_manifest, tmp_path):
    words = ["--task.label_column=style", "--head.kind=logistic", "--task.class_weight=balanced"]
    run = train("genre", short_manifest, tmp_path / "run", *words)
    model = TaskModel.from_pretrained(run.folder / "model")
    assert (model.head_config.kind, model.head_config.dropout) == ("linear", 0)
    found = features(model, short_manifest)
    vectors = np.stack([vector for _, vector in found["train"]])
    labels = [row["style"] for row, _ in found["train"]]
    penalty = run.results["training"]["penalty"]
    assert penalty in PENALTIES
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=1000)
    ).fit(vectors, labels)
    for row, vector in found["test"]:
        scores = model.predict(short_manifest.parent / row["path"]).scores
        assert list(scores) == reference.classes_.tolist()
        assert list(scores.values()) == pytest.approx(
            reference.predict_proba(vector[None])[0], abs=1e-5
        )
    # Validation chose the penalty; a second run, in the same folder, gives the same files.
    values = {one["penalty"]: one["validation"]["accuracy"] for one in read_metrics(run.folder)}
    assert list(values) == list(PENALTIES)
    assert values[penalty] == max(values.values())
    before = [(run.folder / name).read_bytes() for name in ("metrics.jsonl", "predictions.csv")]
    train("genre", short_manifest, tmp_path / "run", *words)
    assert before == [
        (run.folder / name).read_bytes() for name in ("metrics.jsonl", "predictions.csv")
    ]
    card = (run.folder / "model" / "README.md").read_text()
    assert "logistic regression of scikit-learn" in card
    assert "AdamW" not in card
    assert (run.folder / "plots" / "training.png").is_file()
    model.to_transformers()


@pytest.mark.slow
def test_tags_equal_scikit_learn(short_manifest, tmp_path):
    run = train(
        "tagging", short_manifest, tmp_path / "run", "--head.kind=logistic", "--task.pos_weight=2.5"
    )
    model = TaskModel.from_pretrained(run.folder / "model")
    found = features(model, short_manifest)
    scaler = StandardScaler().fit([vector for _, vector in found["train"]])
    vectors = scaler.transform([vector for _, vector in found["train"]])
    for label in model.task.labels:
        targets = [label in row["tags"] for row, _ in found["train"]]
        penalty = run.results["training"]["penalty"]
        reference = LogisticRegression(
            C=1 / penalty, class_weight={False: 1, True: 2.5}, max_iter=1000
        ).fit(vectors, targets)
        for row, vector in found["test"]:
            score = model.predict(short_manifest.parent / row["path"]).scores[label]
            expected = reference.predict_proba(scaler.transform(vector[None]))[0, 1]
            assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_numbers_equal_ridge(short_manifest, tmp_path):
    run = train("emotion", short_manifest, tmp_path / "run", "--head.kind=ridge")
    model = TaskModel.from_pretrained(run.folder / "model")
    found = features(model, short_manifest)
    scaler = StandardScaler().fit([vector for _, vector in found["train"]])
    numbers = np.array([[row["arousal"], row["valence"]] for row, _ in found["train"]])
    of_numbers = StandardScaler().fit(numbers)
    reference = Ridge(alpha=run.results["training"]["penalty"]).fit(
        scaler.transform([vector for _, vector in found["train"]]), of_numbers.transform(numbers)
    )
    for row, vector in found["test"]:
        expected = of_numbers.inverse_transform(reference.predict(scaler.transform(vector[None])))
        scores = model.predict(short_manifest.parent / row["path"]).scores
        assert list(scores.values()) == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.exhaustive
def test_each_track_counts_once_and_two_processes_equal_one(
    repository, manifest, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        solved_head,
        "_standardize",
        lambda features, head, real=solved_head._standardize: (
            seen.append(features) or real(features, head)
        ),
    )
    words = ["--task.label_column=style", "--head.kind=logistic"]
    train("genre", manifest, tmp_path / "one", *words)
    assert len(seen[0].rows) == 17 + 3  # the long track has three variants
    assert seen[0].weights.sum() == pytest.approx(18)
    monkeypatch.undo()
    settings = options(manifest, tmp_path / "one-process") | {"head.kind": "logistic"}
    settings["task.label_column"] = "style"
    train("genre", manifest, tmp_path / "one-process", *words)
    done = run_ranks(
        2,
        [repository / "recipes" / "genre.py"],
        settings | {"run.output_dir": tmp_path / "two-processes"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = [
        tmp_path / f"{name}-process{s}" / "predictions.csv"
        for name, s in (("one", ""), ("two", "es"))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_class_without_training_tracks_and_a_tag_of_all_tracks_have_a_logit():
    rows = np.random.default_rng(0).normal(size=(6, 2))
    features = solved_head.WindowFeatures(
        rows=rows, targets=np.array([0, 2, 0, 2, 0, 2]), weights=np.ones(6)
    )
    task = find_task("genre")(labels=("a", "b", "c"), label_column="style")
    weight, bias = solved_head.solve(task, features, 1.0)
    assert bias[1] == solved_head.ABSENT_LOGIT
    assert not weight[1].any()
    tags = solved_head.WindowFeatures(
        rows=rows, targets=np.array([[1, n % 2] for n in range(6)]), weights=np.ones(6)
    )
    weight, bias = solved_head.solve(
        find_task("tagging")(labels=("a", "b"), label_column="tags"), tags, 1.0
    )
    assert bias[0] == pytest.approx(np.log(7))
    assert weight[1].any()


@pytest.mark.parametrize(
    ("task", "words", "code"),
    [
        ("genre", ["--tuning.method=lora"], "settings-conflict"),
        ("genre", ["--head.pooling=attention"], "settings-conflict"),
        ("genre", ["--training.ema_decay=0.9"], "settings-conflict"),
        ("genre", ["--task.label_smoothing=0.1"], "settings-conflict"),
        ("genre", ["--head.kind=ridge"], "head-unsupported-setting"),
        ("emotion", [], "head-unsupported-setting"),
        ("beats", [], "head-unsupported-setting"),
    ],
)
def test_what_cannot_be_solved_is_refused(task, words, code, tmp_path, manifest):
    data = [f"--data.source={'quickstart' if task == 'beats' else manifest}"]
    column = ["--task.label_column=style"] if task == "genre" else []
    kind = [] if any("kind" in word for word in words) else ["--head.kind=logistic"]
    where = ["--backbone.source=random-small", f"--run.output_dir={tmp_path / 'run'}"]
    reset_accelerate()
    with raises(code):
        train_task(read_config(task, [*data, *column, *kind, *where, *words]), find_task(task))
    assert not (tmp_path / "run").exists()


def test_only_linear_heads_are_saved_as_solved():
    assert not HeadConfig(kind="linear").is_solved
    assert HeadConfig(kind="ridge").is_solved
