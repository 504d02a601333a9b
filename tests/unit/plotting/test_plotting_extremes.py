"""Pictures of what is rare: thousands of classes, one class, nothing at all, names that are no plain text."""

import json
import warnings

import numpy as np
import pytest
from drawn import assert_nothing_is_cut, texts
from PIL import Image
from support.matrix import exhaustive

from m2v_finetune.plotting.beats import plot_beats
from m2v_finetune.plotting.chords import plot_chords
from m2v_finetune.plotting.confusion import confusion_figure, most_confused, plot_confusion
from m2v_finetune.plotting.keys import plot_key_errors
from m2v_finetune.plotting.labels import per_label_figure, plot_per_label
from m2v_finetune.plotting.notes import plot_piano_roll
from m2v_finetune.plotting.regression import plot_regression, regression_figure
from m2v_finetune.plotting.runs import plot_layer_weights, plot_training
from m2v_finetune.plotting.spectrograms import plot_separation
from m2v_finetune.plotting.style import MAX_LABEL_CHARACTERS, shortened

NONE = np.zeros(0)
NO_NOTES = (NONE, NONE, np.zeros(0, int))

NAMES = {
    "a formula": "$x^2$",
    "half a formula": "cost: $5",
    "no formula": "$\\frac{1$",
    "underlines": "__init__",
    "an underline": "_hidden",
    "an emoji": "rock \N{GUITAR}",
    "another script": "ロック",
    "right to left": "روك",
    "very long": "word " * 200,
    "one long word": "x" * 1000,
    "two lines": "two\nlines\tand a tab",
    "control characters": "bell\x07 null\x00 escape\x1b[31m",
    "bytes that are no UTF-8": "caf\udce9",
    "markup": "<b>[bold]|&amp;\\alpha",
    "percent": "100 %s %d {x}",
    "spaces": "   ",
    "nothing": "",
}


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("half a formula", marks=pytest.mark.exhaustive),
        pytest.param("no formula", marks=pytest.mark.exhaustive),
        pytest.param("an underline", marks=pytest.mark.exhaustive),
        "an emoji",
        pytest.param("one long word", marks=pytest.mark.exhaustive),
        pytest.param("two lines", marks=pytest.mark.exhaustive),
        pytest.param("control characters", marks=pytest.mark.exhaustive),
        pytest.param("bytes that are no UTF-8", marks=pytest.mark.exhaustive),
        pytest.param("nothing", marks=pytest.mark.exhaustive),
    ],
)
def test_names_of_any_kind_are_drawn(kind, tmp_path):
    name = NAMES[kind]
    labels = [name, "plain"]
    counts = np.array([[3, 1], [0, 2]])
    metric = {"roc_auc": 0.5, "num_positive": 3}
    lines = [{"step": 1, "epoch": 1, "loss": 1.0}, {"step": 1, "epoch": 1, "validation": {"a": 1}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wave = np.sin(np.arange(16_000) / 9)
    times = np.arange(0, 1, 0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(counts, labels, tmp_path / "confusion.png", title="Confusion")
        plot_per_label(
            {name: metric, "plain": metric, name + "!": {"roc_auc": None, "num_positive": 0}},
            tmp_path / "labels.png",
            metric="roc_auc",
            name="ROC-AUC",
        )
        plot_regression(
            np.array([[1.0], [2.0]]), np.array([[1.5], [1.0]]), [name], tmp_path / "regression.png"
        )
        plot_training(
            tmp_path / "metrics.jsonl",
            tmp_path / "training.png",
            metric_names={"a": f"R2 of {name}"},
        )
        plot_layer_weights([1.0], tmp_path / "weights.png", backbone=name, kind="last")
        plot_separation(wave, {name: wave}, 16_000, tmp_path / "separation.png", title=name)
        plot_beats(
            wave,
            16_000,
            times,
            times,
            times,
            times[::5],
            times[::9],
            None,
            None,
            tmp_path / "beats.png",
            title=f"Beats of {name}",
        )
        plot_chords(
            [(0.0, 1.0, "C:maj")], None, None, None, tmp_path / "chords.png", title=f"Of {name}"
        )
        plot_piano_roll(
            NO_NOTES, None, tmp_path / "notes.png", start_seconds=0, end_seconds=1, title=name
        )
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == 9
    assert all(map(is_picture, pictures))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_is_drawn_of_a_name_is_one_line_of_text(name):
    drawn = shortened(name)
    assert len(drawn) <= MAX_LABEL_CHARACTERS
    assert drawn.isprintable()
    drawn.encode()


def test_1201_classes_show_those_that_are_confused_most(tmp_path):
    rng = np.random.default_rng(0)
    counts = np.diag(rng.integers(1, 9, 1201))
    expected = set()
    for row, column, errors in [(7, 1200, 40), (3, 900, 30), (900, 3, 5), (500, 501, 20)]:
        counts[row, column] = errors
        expected |= {row, column}
    shown = most_confused(counts, 25)
    assert len(shown) == len(set(shown)) == 25
    assert expected <= set(shown)
    assert shown == sorted(shown)
    figure = confusion_figure(counts, [f"artist {i}" for i in range(1201)], title="Artists")
    [axes] = figure.axes
    assert axes.get_title(loc="left") == "Artists: the 25 most confused of 1,201 classes"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"artist {i}" for i in shown]
    # Percentages are of all tracks of a class, and the sum below the title of all classes.
    totals = counts.sum(axis=1)
    row, column = shown.index(7), shown.index(1200)
    assert axes.get_images()[0].get_array()[row, column] == pytest.approx(40 / totals[7])
    assert f"{np.trace(counts):,} of {counts.sum():,} are correct" in texts(figure)
    assert_nothing_is_cut(figure)
    plot_confusion(counts, list(map(str, range(1201))), tmp_path / "a.png", title="A")
    assert is_picture(tmp_path / "a.png")


@pytest.mark.parametrize("count", [200, 201, *exhaustive(1200, 2000)])
def test_any_number_of_classes_is_drawn(count):
    counts = np.zeros((count, count), dtype=np.int64)
    counts[0, count - 1] = 1
    figure = confusion_figure(counts, list(map(str, range(count))), title="A")
    shown = len(figure.axes[0].get_yticks())
    assert shown == 25 if count > 200 else 10 <= shown <= 12
    assert_nothing_is_cut(figure)


def test_most_confused_where_nothing_is_confused():
    counts = np.diag([1, 5, 2, 9])
    assert most_confused(counts, 2) == [1, 3]
    assert most_confused(counts, 4) == [0, 1, 2, 3]
    assert most_confused(np.zeros((3, 3), int), 2) == [0, 1]


@pytest.mark.parametrize("counts", [[[5]], [[0]]])
def test_one_class(counts):
    figure = confusion_figure(np.array(counts), ["the only one"], title="A")
    assert_nothing_is_cut(figure)
    per_label = {"the only one": {"roc_auc": None, "num_positive": 5}}
    assert_nothing_is_cut(per_label_figure(per_label, metric="roc_auc", name="ROC-AUC"))


@pytest.mark.slow
def test_many_labels_show_the_best_and_the_worst(tmp_path):
    per_label = {str(i): {"roc_auc": i / 3000, "num_positive": i} for i in range(3000)}
    figure = per_label_figure(per_label, metric="roc_auc", name="ROC-AUC")
    [axes] = figure.axes
    drawn = [tick.get_text() for tick in axes.get_yticklabels()]
    assert drawn == [str(i) for i in [*range(2999, 2949, -1), *range(49, -1, -1)]]
    assert "3,000" in axes.get_title(loc="left")
    plot_per_label(per_label, tmp_path / "a.png", metric="roc_auc", name="ROC-AUC")
    assert is_picture(tmp_path / "a.png")


@pytest.mark.exhaustive
def test_many_targets_of_a_regression(tmp_path):
    values = np.random.default_rng(0).random((10, 300))
    figure = regression_figure(values, values, list(map(str, range(300))))
    assert len(figure.axes) == 24
    assert "24 of 300" in texts(figure)
    plot_regression(values, values, list(map(str, range(300))), tmp_path / "a.png")
    assert is_picture(tmp_path / "a.png")


@pytest.mark.slow
def test_nothing_was_found(tmp_path):
    """No beat, chord or note, estimated or annotated; silence; keys of nothing."""
    for number, reference in enumerate((None, NONE)):
        plot_beats(
            np.zeros(100),
            16_000,
            np.array([0.01]),
            np.zeros(1),
            np.zeros(1),
            NONE,
            NONE,
            reference,
            reference,
            tmp_path / f"beats-{number}.png",
        )
        plot_piano_roll(
            NO_NOTES,
            None if reference is None else NO_NOTES,
            tmp_path / f"notes-{number}.png",
            start_seconds=0,
            end_seconds=1,
        )
        plot_chords(
            [],
            None if reference is None else [],
            None,
            None,
            tmp_path / f"chords-{number}.png",
            end_seconds=1.0,
        )
    plot_key_errors(np.zeros((24, 24), int), tmp_path / "keys.png")
    plot_separation(np.zeros(2000), {"a": np.zeros(2000)}, 16_000, tmp_path / "silence.png")
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == 8
    assert all(map(is_picture, pictures))


def test_a_picture_that_the_disk_does_not_take_is_not_half_there(tmp_path):
    figure = confusion_figure(np.eye(2, dtype=int), ["a", "b"], title="A")
    figure.savefig = lambda path, **options: path.write_bytes(b"\x89PNG") and 1 / 0
    from m2v_finetune.plotting.style import save

    with pytest.raises(ZeroDivisionError):
        save(figure, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
