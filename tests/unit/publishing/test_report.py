"""The report of a run and the comparison of two, as files; their look is tested in Chromium below."""

import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from finished_runs import finished_run
from support.messages import raises

from m2v_finetune.cli import main
from m2v_finetune.files import write_json
from m2v_finetune.metrics.intervals import resample_counts
from m2v_finetune.publishing.comparison import compare_runs, write_comparison
from m2v_finetune.publishing.publish import draw_plots
from m2v_finetune.publishing.report import write_report
from m2v_finetune.publishing.report_tracks import audio_link, track_lists
from m2v_finetune.tasks.clip_prediction import ClipPrediction, WindowPrediction
from m2v_finetune.tasks.clips import EvaluatedClip
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.training.track_results import (
    TrackResult,
    read_track_results,
    save_track_results,
)

LABELS = ("jazz", "<script>alert(1)</script>", "rock & roll")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a test track whose name needs escapes, with its report."""
    folder = tmp_path_factory.mktemp("report")
    music = folder / "my music"
    music.mkdir()
    paths = [music / f"{number} #1 100% é.wav" for number in range(9)]
    for path in paths[:-1]:
        soundfile.write(path, np.zeros(8000), 8000)
    made, run, results, evaluated = finished_run(
        folder,
        LABELS,
        num_tracks=9,
        paths=paths,
        seed=3,
        num_skipped_tracks={"train": 2, "test": 0},
        lost_tracks={"train": ["<lost>"]},
        warnings=["The training loss did not fall beyond its noise."],
    )
    made.save_pretrained(run.model)
    draw_plots(made, run, results, evaluated=evaluated, tracks=[])
    write_report(run.path)
    return run


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, with its console."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def test_the_report_has_all_parts_and_nothing_of_elsewhere(run):
    text = run.report.read_text()
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    assert "The training loss did not fall" in text
    assert "&lt;lost&gt;" in text
    assert text.count("data:image/png;base64,") == 3  # training, layers, confusion
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
    sources = re.findall(r'<audio [^>]*src="([^"]+)"', text)
    assert len(sources) >= 8
    assert {source.split("/")[0] for source in sources} == {".."}
    assert "no audio file" in text  # that of the last track


def test_the_same_command_writes_the_same_report_again(run, capsys):
    before = run.report.read_bytes()
    run.report.unlink()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run.path)])
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.strip() == str(run.report)
    assert run.report.read_bytes() == before


@pytest.mark.slow
def test_chromium_shows_sorts_and_plays(run, browser):
    browser.get(run.report.as_uri())
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 100)")
    assert browser.execute_script("return window.alerted === undefined")

    def column(number):
        return browser.execute_script(
            "return [...document.querySelectorAll('table.sortable tbody tr')]"
            f".map(row => row.cells[{number}].textContent)"
        )

    headings = browser.find_elements("css selector", "table.sortable th button")
    headings[2].click()
    falling = [float(cell) for cell in column(2)]
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) > 1
    headings[2].click()
    assert [float(cell) for cell in column(2)] == falling[::-1]
    headings[0].click()
    headings[0].click()
    assert set(column(0)) == set(LABELS)

    seconds = browser.execute_async_script(
        """const done = arguments[0], audio = document.querySelector("audio");
        audio.onloadedmetadata = () => done(audio.duration);
        audio.onerror = () => done("error");
        audio.preload = "metadata"; audio.load();"""
    )
    assert seconds == 1.0
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert errors == []


def test_bytes_that_are_no_utf8_become_a_link_that_finds_the_file(tmp_path):
    path = tmp_path / "music" / os.fsdecode(b"caf\xe9 & co.wav")
    path.parent.mkdir()
    path.touch()
    (tmp_path / "run").mkdir()
    assert audio_link(path, tmp_path / "run") == "../music/caf%E9%20%26%20co.wav"
    assert audio_link(path.with_name("gone.wav"), tmp_path) is None


def result(name, target, scores):
    evaluated = EvaluatedClip(target=np.float32(target), scores=np.array(scores, np.float32))
    return TrackResult(id=name, path=None, seconds=1.0, evaluated=evaluated)


def test_worst_and_most_confident_wrong_tags(monkeypatch):
    monkeypatch.setattr("m2v_finetune.publishing.report_tracks.audio_link", lambda *_: None)
    task = Tagging(labels=("a", "b"), label_column="tags")
    tracks = [
        result("right", [1, 0], [0.9, 0.1]),
        result("missed", [1, 1], [0.9, 0.02]),
        result("added", [0, 0], [0.95, 0.3]),
    ]
    worst, wrong = track_lists(task, tracks, None)
    assert [row.id for row in worst.rows] == ["missed", "added", "right"]
    losses = [-np.log([0.9 * 0.02, 0.05 * 0.7, 0.9 * 0.9][i]) / 2 for i in range(3)]
    assert [row.error for row in worst.rows] == [f"{loss:.3f}" for loss in losses]
    assert [(row.id, row.prediction) for row in wrong.rows] == [
        ("missed", "b: missed"),
        ("added", "a: not annotated"),
    ]


def test_the_time_line_of_a_track_has_its_windows(tmp_path):
    """Of 12.5 s in windows of 5 s: shares of the track, labels right and wrong, also from the file."""
    windows = [
        WindowPrediction(start_seconds=start, end_seconds=end, scores={"a": one, "b": 1 - one})
        for start, end, one in ((0.0, 5.0, 0.9), (5.0, 10.0, 0.2), (10.0, 12.5, 0.6))
    ]
    prediction = ClipPrediction(scores={"a": 0.5667, "b": 0.4333}, timeline=windows)
    task = Genre(labels=("a", "b"), label_column="genre")
    evaluated = EvaluatedClip(
        target=np.float32(0),
        scores=np.float32([0.5667, 0.4333]),
        timeline=prediction.short_timeline(),
    )
    one = TrackResult(id="x", path=tmp_path / "x.wav", seconds=12.5, evaluated=evaluated)
    save_track_results(tmp_path / "test_tracks.jsonl", [one])
    [read] = read_track_results(tmp_path / "test_tracks.jsonl")
    assert read.evaluated.timeline == evaluated.timeline
    [worst, _] = track_lists(task, [read], tmp_path)
    parts = worst.rows[0].timeline
    assert [part.share for part in parts] == pytest.approx([40, 40, 20])
    assert [part.text for part in parts] == ["a", "b", "a"]
    assert [part.is_right for part in parts] == [True, False, True]
    assert parts[1].about == "5.0 to 10.0 s: b 0.80"
    numbers = replace(prediction, is_ranking=False)
    assert [one.scores.keys() for one in numbers.short_timeline()] == [{"a", "b"}] * 3
    assert replace(prediction, timeline=windows[:1]).short_timeline() == ()


def test_a_run_compared_with_itself_has_no_difference(run):
    rows = compare_runs(run.path, run.path)
    assert [row.metric for row in rows[:2]] == ["accuracy", "macro F1"]
    assert len(rows) == 2 + len(LABELS)
    for row in rows:
        assert row.difference == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert not row.is_clear


def test_the_difference_is_that_of_the_same_resamples(run, tmp_path):
    other = another_run(tmp_path, run)
    rows = compare_runs(run.path, other.path)
    right = [
        np.array([one.evaluated.scores.argmax() == one.evaluated.target for one in tracks])
        for tracks in (read_track_results(one.test_tracks) for one in (run, other))
    ]
    accuracy = rows[0]
    assert accuracy.first == pytest.approx(right[0].mean())
    assert accuracy.second == pytest.approx(right[1].mean())
    gain = right[1].astype(float) - right[0]
    (counts,) = resample_counts(len(gain), seed=0, num_resamples=1000)
    means = [np.repeat(gain, row).mean() for row in counts]
    expected = np.quantile(means, [0.025, 0.975])
    assert (accuracy.difference["low"], accuracy.difference["high"]) == pytest.approx(
        tuple(expected)
    )
    page = tmp_path / "page.html"
    write_comparison(page, rows, first="A", second="B", num_tracks=9)
    assert "&lt;script&gt;alert(1)" in page.read_text()
    with raises("output-exists", page):
        write_comparison(page, rows, first="A", second="B", num_tracks=9)


def another_run(tmp_path, run, *, labels=LABELS, num_tracks=9):
    paths = [one.path for one in read_track_results(run.test_tracks)][:num_tracks]
    model, other, *_ = finished_run(tmp_path, labels, num_tracks=num_tracks, paths=paths, seed=1)
    model.save_pretrained(other.model)
    return other


def test_other_test_tracks_are_refused(run, tmp_path):
    with raises("runs-not-comparable", "8 #1 100% é.wav"):
        compare_runs(run.path, another_run(tmp_path, run, num_tracks=8).path)


def test_other_labels_of_the_same_tracks_are_refused(run, tmp_path):
    labels = (*LABELS[::-1],)
    with raises("runs-not-comparable"):
        compare_runs(run.path, another_run(tmp_path, run, labels=labels).path)


def test_other_targets_are_refused(run, tmp_path):
    other = another_run(tmp_path, run)
    lines = other.test_tracks.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace('"target": 0.0', '"target": 1.0')
    other.test_tracks.write_text("".join(lines))
    with raises("runs-not-comparable", "3 #1 100% é.wav"):
        compare_runs(run.path, other.path)


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    with raises("run-not-finished", tmp_path):
        write_report(tmp_path)
    other = another_run(tmp_path, run)
    other.test_tracks.write_text('{"id": 1}\n')
    with raises("run-file-damaged", other.test_tracks):
        write_report(other.path)
    other.test_tracks.unlink()
    with raises("run-no-track-results", other.test_tracks):
        write_report(other.path)
    write_json(other.results, {"split": "validation"})
    with raises("run-not-finished"):
        write_report(other.path)


@pytest.mark.parametrize("words", [["a", "b", "c"], ["a", "--labels"], ["a", "--output", "x"]])
def test_a_number_of_runs_that_has_no_report_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", *words])
    assert ended.value.code == 2


def test_two_runs_are_printed_and_written(run, tmp_path, capsys):
    other = another_run(tmp_path, run)
    page = tmp_path / "comparison.html"
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run.path), str(other.path), "--labels", "--output", str(page)])
    assert ended.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["label", "metric", "A", "B", "B", "-", "A", "95", "%", "interval"]
    assert len([line for line in lines if re.search(r"[+-]0\.\d{4} to ", line)]) == 5
    assert page.read_text().count("<tr>") == 2 + 5
