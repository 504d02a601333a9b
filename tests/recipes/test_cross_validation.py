"""Cross-validation: every track once, groups together, finished folds not repeated, one feature cache."""

import itertools
import json
from collections import Counter

import pytest
import soundfile
from support.clip_tracks import make_track
from support.messages import raises
from support.processes import run_ranks
from support.runs import reset_accelerate

from m2v_finetune import TaskModel, runs
from m2v_finetune.config import DataConfig
from m2v_finetune.data.folds import fold_splits, least_subset, nested_subset
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.publishing.comparison import compare_runs
from m2v_finetune.runs import read_config, train_task
from m2v_finetune.tasks import TASKS, find_task
from m2v_finetune.tasks.clips import has_labels
from m2v_finetune.training import solved_head
from m2v_finetune.training.run_tracks import load_splits

NUM_FOLDS = 3


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Twelve artists with two tracks each, of 1 s, and three styles; their splits do not matter."""
    folder = tmp_path_factory.mktemp("tracks")
    left = Counter({"rock": 8, "waltz": 8, "ballad": 8})
    rows = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        if left[row["style"]] <= 0:
            continue
        left[row["style"]] -= 1
        samples, rate = soundfile.read(QUICKSTART_DIR / row["path"])
        name = f"{len(rows)}.wav"
        soundfile.write(folder / name, samples[: rate + 4000], rate)
        artist = f"{row['style']} {left[row['style']] // 2}"
        rows.append({"path": name, "style": row["style"], "artist": artist, "split": row["split"]})
    (folder / "songs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "songs.jsonl"


def words(manifest, folder, **changes):
    settings = {
        "data.source": manifest,
        "data.folds": NUM_FOLDS,
        "data.validation_fraction": 0.3,
        "data.window_seconds": 1,
        "data.num_variants": 2,
        "data.num_workers": 0,
        "task.label_column": "style",
        "head.kind": "logistic",
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "cache.folder": folder.parent / "cache",
        "run.output_dir": folder,
    }
    return [f"--{key}={value}" for key, value in (settings | changes).items()]


def train(*given):
    reset_accelerate()
    return train_task(read_config("genre", given), find_task("genre"))


@pytest.fixture(scope="module")
def done(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    changed = pytest.MonkeyPatch()
    changed.setattr(solved_head, "PENALTIES", (10.0, 1.0))
    run = train(*words(manifest, folder, **{"data.final_model": "true"}))
    yield run
    changed.undo()


@pytest.mark.slow
def test_each_track_is_evaluated_once_by_a_model_that_was_not_trained_on_it(manifest, done):
    rows = {row["path"]: row for row in map(json.loads, manifest.read_text().splitlines())}
    evaluated = []
    for fold in range(NUM_FOLDS):
        folder = done.folder / f"fold-{fold}"
        kept = json.loads((folder / "tracks.json").read_text())
        own = [json.loads(line)["id"] for line in (folder / "test_tracks.jsonl").open()]
        assert sorted(own) == sorted(kept["test"])
        artists = {split: {rows[name]["artist"] for name in kept[split]} for split in kept}
        assert not artists["test"] & (artists["train"] | artists["validation"])
        assert not artists["train"] & artists["validation"]
        assert {rows[name]["style"] for name in kept["test"]} == {"rock", "waltz", "ballad"}
        evaluated += own
    assert sorted(evaluated) == sorted(rows)
    lines = (done.folder / "test_tracks.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == evaluated
    assert (done.folder / "predictions.csv").read_text().count("\n") == 1 + len(rows)


def test_results_are_those_of_all_tracks_with_their_spread(done):
    results = json.loads((done.folder / "results.json").read_text())
    assert results == done.results
    assert (results["split"], results["num_tracks"]) == ("cross-validation", 24)
    folds = [
        json.loads((done.folder / f"fold-{n}" / "results.json").read_text())
        for n in range(NUM_FOLDS)
    ]
    values = [one["metrics"]["accuracy"]["value"] for one in folds]
    spread = results["folds"]["accuracy"]
    assert spread["values"] == values
    assert spread["mean"] == pytest.approx(sum(values) / NUM_FOLDS)
    right = sum(one["metrics"]["accuracy"]["value"] * one["num_tracks"] for one in folds)
    accuracy = results["metrics"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right / 24)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert f"24 tracks in {NUM_FOLDS} folds" in (done.folder / "report.html").read_text()
    [first, *_] = compare_runs(done.folder, done.folder)
    assert first.difference["value"] == 0


def test_the_final_model_has_all_tracks_and_the_results_of_the_folds(manifest, done):
    folder = done.folder / "final"
    kept = json.loads((folder / "tracks.json").read_text())
    assert sum(map(len, kept.values())) == 24
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"] == done.results["metrics"]
    card = (folder / "model" / "README.md").read_text()
    assert f"one of {NUM_FOLDS} models" in card
    model = TaskModel.from_pretrained(folder / "model")
    assert model.predict(manifest.parent / "0.wav").label in model.task.labels


def test_the_folds_share_one_feature_cache(done):
    stores = [path for path in (done.folder.parent / "cache").iterdir() if path.is_dir()]
    assert len(stores) == 2  # training windows and windows of evaluation, of all tracks


@pytest.mark.slow
def test_finished_folds_are_not_run_again(manifest, done, monkeypatch):
    (done.folder / "fold-1" / "results.json").unlink()
    before = (done.folder / "results.json").read_bytes()
    seen = []
    real = runs.train_task
    monkeypatch.setattr(
        runs,
        "train_task",
        lambda config, *a, **k: seen.append(config.data.fold) or real(config, *a, **k),
    )
    given = words(manifest, done.folder, **{"data.final_model": "true", "run.resume": "auto"})
    reset_accelerate()
    real(read_config("genre", given), find_task("genre"))
    assert seen == [1]
    now = json.loads((done.folder / "results.json").read_bytes())
    assert now["metrics"] == json.loads(before)["metrics"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"data.folds": 13}, "folds-too-few-groups"),
        ({"data.folds": 1}, "settings-range"),
        ({"data.fold": 3}, "settings-range"),
        ({"data.fold": 0, "data.final_model": "true"}, "settings-conflict"),
    ],
)
def test_what_cannot_be_folded_is_refused(given, code, manifest, tmp_path):
    with raises(code):
        train(*words(manifest, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_a_label_in_one_group_is_refused_before_training(manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows[:2]:
        row |= {"style": "polka", "artist": "one"}
    (manifest.parent / "polka.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with raises("folds-label-in-few-groups", "polka"):
        train(*words(manifest.parent / "polka.jsonl", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


TRACKS = [
    make_track({"tags": [f"tag {n % 3}"], "artist": f"artist {n // 2}"}, line=n + 2)
    for n in range(24)
]


@pytest.mark.exhaustive
def test_two_processes_give_the_folds_of_one(manifest, repository, tmp_path):
    """With a model on all tracks at the end; each fold has the processes of the one before."""
    script = repository / "recipes" / "genre.py"
    common = {
        "head.kind": "linear",
        "head.dropout": 0,
        "training.epochs": 1,
        "data.windows_per_track": 2,
        "data.final_model": "true",
    }
    folders = [tmp_path / "one", tmp_path / "two"]
    for count, folder in enumerate(folders, start=1):
        batch = {"training.per_device_batch_size": 8 // count}
        given = words(manifest, folder, **common, **batch)
        done = run_ranks(count, [script, *given], {})
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    for name, entry in one["metrics"].items():
        assert two["metrics"][name]["value"] == pytest.approx(entry["value"], abs=1e-5)
    assert (folders[1] / "final" / "model" / "config.json").is_file()
    assert all(row.second == pytest.approx(row.first) for row in compare_runs(*folders))


def test_folds_depend_on_the_seed_and_not_on_the_order():
    def ids(tracks, seed):
        return [
            sorted(
                t.id
                for t in fold_splits(
                    tracks,
                    group_columns=["artist"],
                    label_column="tags",
                    num_folds=4,
                    fold=fold,
                    validation_fraction=0.2,
                    seed=seed,
                )["test"]
            )
            for fold in range(4)
        ]

    assert ids(TRACKS, 0) == ids(TRACKS[::-1], 0)
    assert ids(TRACKS, 0) != ids(TRACKS, 1)
    assert sorted(itertools.chain(*ids(TRACKS, 0))) == sorted(t.id for t in TRACKS)


@pytest.mark.parametrize(("num_labels", "num_each"), [(3, 9), (10, 4), (25, 4), (2, 6)])
def test_labels_with_fewer_tracks_than_parts(num_labels, num_each):
    """The validation split is a tenth of the groups, also where no label has ten tracks."""
    tracks = [
        make_track({"tags": [f"tag {n % num_labels}"]}, line=n + 2)
        for n in range(num_labels * num_each)
    ]
    folds = [
        fold_splits(
            tracks,
            group_columns=["artist"],
            label_column="tags",
            num_folds=3,
            fold=fold,
            validation_fraction=0.1,
            seed=0,
        )
        for fold in (0, 1, 2, None)
    ]
    tested = [track.id for splits in folds[:3] for track in splits["test"]]
    assert sorted(tested) == sorted(track.id for track in tracks)
    for splits in folds:
        num_rest = len(splits["train"]) + len(splits["validation"])
        assert len(splits["validation"]) == pytest.approx(num_rest / 10, abs=2)


def test_subsets_are_nested_and_have_every_label():
    def subset(number, seed=0):
        chosen, unused = nested_subset(
            TRACKS, number, group_columns=["artist"], label_column="tags", seed=seed
        )
        assert len(chosen) == number
        assert {t.id for t in chosen} | {t.id for t in unused} == {t.id for t in TRACKS}
        return {t.id for t in chosen}

    least = least_subset(TRACKS, group_columns=["artist"], label_column="tags", seed=0)
    assert least == 3
    sizes = [subset(number) for number in range(least, 25)]
    assert all(one < two for one, two in itertools.pairwise(sizes))
    labels = {t.id: t.columns["tags"][0] for t in TRACKS}
    assert {labels[name] for name in sizes[0]} == {"tag 0", "tag 1", "tag 2"}
    assert subset(8) != subset(8, seed=1)


@pytest.mark.parametrize("name", ["beats", "emotion", "separation"])
def test_subsets_of_files_and_numbers_are_drawn_at_random(name, tmp_path):
    """Each value occurs about once, so that no label is to be covered."""
    columns = {"beats": "beats", "emotion": "arousal", "separation": "stems"}
    values = {"beats": "{}.beats", "emotion": "{}", "separation": "stems/{}"}
    lines = ["id,path,split," + columns[name]]
    for n in range(60):
        split = "train" if n < 40 else "validation" if n < 50 else "test"
        lines.append(f"{n:02d},{n}.wav,{split},{values[name].format(n - 20)}")
    (tmp_path / "songs.csv").write_text("\n".join(lines))

    def subset(size, seed):
        data = DataConfig(
            source=str(tmp_path / "songs.csv"), num_train_tracks=size, subset_seed=seed
        )
        splits, _ = load_splits(
            data, label_column=columns[name], seed=0, stratify=has_labels(TASKS[name])
        )
        return {track.id for track in splits["train"]}

    chosen = [subset(10, seed) for seed in range(8)]
    assert len(set(map(frozenset, chosen))) == 8
    assert len(set.union(*chosen)) > 30  # not the same ones each time
    assert subset(5, 0) < subset(10, 0) < subset(20, 0)
