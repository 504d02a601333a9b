"""The structure task: layouts, targets, sections of perfect windows, metrics against mir_eval."""

import json
import math
from pathlib import Path

import mir_eval
import numpy as np
import pytest
import torch
from support.frame_tracks import GRIDS, make_track, silent_track, windows_of, with_scores
from support.messages import raises

from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.data.loader import Window
from m2v_finetune.labels.sections import Sections, read_sections
from m2v_finetune.metrics.sections import section_scores
from m2v_finetune.tasks.structure import StructureAnalysis, StructureConfig, StructurePrediction

TASK = StructureAnalysis(labels=("chorus", "verse"), label_column="sections")
SONG = [(0.0, "intro"), (4.0, "verse"), (9.3, "chorus"), (14.01, "verse"), (20.0, "end")]


def write(folder, rows=SONG, name="song.txt", separator=" "):
    (folder / name).write_text("".join(f"{time}{separator}{label}\n" for time, label in rows))
    return name


def test_harmonix_and_salami_are_read(tmp_path):
    harmonix = read_sections(tmp_path / write(tmp_path))
    assert harmonix.labels == ("intro", "verse", "chorus", "verse")
    assert harmonix.borders_seconds.tolist() == [0, 4, 9.3, 14.01, 20]
    salami = [
        (0.0, "Silence"),
        (0.46, "Fade-out"),
        (9.0, "no_function"),
        (9.0, "Post Verse"),
        (12.5, "End"),
    ]
    found = read_sections(tmp_path / write(tmp_path, salami, separator="\t"))
    assert found.labels == ("silence", "fade-out", "post verse")
    assert found.borders_seconds.tolist() == [0, 0.46, 9.0, 12.5]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 verse\n9\n12 end\n", ":2: '9' is not a time and a label"),
        ("0 verse\n9 chorus\n3 verse\n12 end\n", ":3: the time 3.0 is before 9.0 of line 2"),
        ("verse 0\n12 end\n", ":1: 'verse' is not a number of seconds"),
        ("0 verse\n9 chorus\n", ":2: the last line must have the end"),
        ("0 verse\n9 end\n9 chorus\n", ":3: a section after the line 'end'"),
        ("0 end\n", ":1: no section"),
        ("", ":1: the last line must have the end"),
    ],
)
def test_bad_lines_are_named(text, problem, tmp_path):
    (tmp_path / "song.txt").write_text(text)
    with raises("sections-bad-lines", problem):
        read_sections(tmp_path / "song.txt")


def test_labels_are_those_of_the_training_tracks(tmp_path):
    write(tmp_path)
    write(tmp_path, [(0, "Solo"), (3, "END")], name="other.txt")
    (tmp_path / "bad.txt").write_text("nonsense\n")
    tracks = [make_track(tmp_path, sections=name) for name in ("song.txt", "bad.txt", "gone.txt")]
    task = StructureAnalysis.from_training(StructureConfig(), tracks)
    assert task.labels == ("chorus", "intro", "verse")
    assert StructureAnalysis.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    only = StructureAnalysis.from_training(StructureConfig(labels=["Chorus"]), tracks)
    assert (only.labels, only.num_outputs) == (("chorus",), 2)
    with raises("labels-not-in-training", "solo"):
        StructureAnalysis.from_training(StructureConfig(labels=["solo"]), tracks)
    # A label of a test track that training does not have is legal: its boundaries count.
    TASK.check_labels([silent_track(tmp_path, 3.0, sections="other.txt").track])


def test_targets_have_boundaries_between_sections_and_follow_time(tmp_path):
    track = silent_track(tmp_path, 20.0, sections=write(tmp_path))
    window = Window(start_sample=0, num_samples=10 * 16000, grid=GRIDS[50])
    times = window.frame_times_seconds
    _, targets = TASK.example(track, window, None)
    assert targets[np.abs(times - 4).argmin(), 0] == pytest.approx(1, abs=1e-2)
    np.testing.assert_allclose(
        targets[:, 0],
        np.exp(-0.5 * (np.abs(times[:, None] - [4, 9.3]).min(axis=1) / 0.25) ** 2),
        atol=1e-5,
    )
    assert targets[:, 0][times < 2].max() < 1e-3  # the start of the track is no target
    np.testing.assert_array_equal(
        targets[:, 1], np.select([times < 4, times < 9.3], [0, 2], default=1)
    )
    transform = LabelTransform(rate=2.0, offset_seconds=1.0, source_end_seconds=9.0)
    _, moved = TASK.example(track, window, lambda x: (x, transform))
    assert times[moved[:, 0].argmax()] == pytest.approx(3.0, abs=0.02)
    assert not moved[(times < 1) | (times > 5.51)].any()  # silence has neither boundary nor label


def test_the_loss_is_what_one_computes_by_hand():
    logits = torch.zeros(2, 2, 3)
    logits[0, 0, 1] = 2.0
    targets = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.5, 0.0], [0.0, 0.0]]])
    label = math.log(math.exp(2) + 1) - 2
    assert TASK.loss(logits, targets).item() == pytest.approx(math.log(2) + label / 2, rel=1e-6)


def perfect(times):
    boundaries = 0.9 * np.exp(
        -0.5 * (np.abs(times[:, None] - [4, 9.3, 14.01]).min(axis=1) / 0.25) ** 2
    )
    verse = ((times >= 4) & (times < 9.3)) | (times >= 14.01)
    return np.stack([boundaries, 0.8 - 0.6 * verse, 0.2 + 0.6 * verse], axis=-1)


@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_a_model_that_is_given_the_answer_reaches_the_top(rate, tmp_path):
    song = [(time, {"intro": "chorus"}.get(label, label)) for time, label in SONG]
    track = silent_track(tmp_path, 20.0, sections=write(tmp_path, song))
    prediction = TASK.predict(track, with_scores(windows_of(track, GRIDS[rate]), perfect))
    assert prediction.sections.labels == ("chorus", "verse", "chorus", "verse")
    borders = prediction.sections.borders_seconds
    np.testing.assert_allclose(borders, [0, 4, 9.3, 14.01, 20], atol=0.02)
    scores = TASK.evaluate_track(track, prediction)
    assert scores.keys() == TASK.metric_names.keys()
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0), abs=0.01)

    captions = TASK.plot(
        tmp_path / "p", results={}, evaluated=[], tracks=[track], predict=lambda _: prediction
    )
    assert {path.name for path in (tmp_path / "p").iterdir()} == set(captions)
    assert [one.ndim for one in prediction.show(Path("a.mp3")).pictures.values()] == [3]


def test_a_track_of_one_frame_is_one_section(tmp_path):
    track = silent_track(tmp_path, 0.03, sections="unused")
    [window] = windows_of(track, GRIDS[50])
    prediction = TASK.predict(track, with_scores([window], perfect))
    assert prediction.segments == [(0.0, pytest.approx(0.03), "chorus")]


def test_scores_are_those_of_mir_eval():
    rng = np.random.default_rng(0)

    def draw(end):
        borders = np.array([0, *np.sort(rng.uniform(1, end - 1, 6)), end])
        return np.stack([borders[:-1], borders[1:]], axis=1), list(rng.choice(["a", "b", "c"], 7))

    reference, estimate = draw(40.0), draw(41.0)
    found = section_scores(*reference, *estimate)
    expected = mir_eval.segment.evaluate(*reference, *estimate)
    assert found == pytest.approx(
        {
            **{
                f"boundary_{ours}_{name}": expected[f"{theirs}@{at}"]
                for name, at in (("05", 0.5), ("3", 3.0))
                for ours, theirs in (
                    ("f1", "F-measure"),
                    ("precision", "Precision"),
                    ("recall", "Recall"),
                )
            },
            "pairwise_f1": expected["Pairwise F-measure"],
        }
    )


def test_formats(tmp_path):
    prediction = StructurePrediction(
        sections=Sections(
            borders_seconds=np.array([0.0, 4.25, 9.0]), labels=("verse", "post chorus")
        ),
        frame_times_seconds=np.zeros(0),
        boundaries=np.zeros(0),
    )

    def render(kind):
        return prediction.render(kind, path=Path("a.mp3"), top=3, timeline=False, is_first=True)

    _, first, second = render("text").splitlines()
    assert first.split() == ["0.00", "-", "4.25", "s", "verse"]
    assert second.endswith("9.00 s  post chorus")
    assert json.loads(render("json"))["sections"][1] == {
        "start_seconds": 4.25,
        "end_seconds": 9.0,
        "label": "post chorus",
    }
    prediction.write("txt", tmp_path / "a.txt")
    again = read_sections(tmp_path / "a.txt")
    assert (again.labels, again.borders_seconds.tolist()) == (
        ("verse", "post chorus"),
        [0, 4.25, 9],
    )
