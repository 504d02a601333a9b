"""Predictions of many files: what is kept when something stops them, and how the same command resumes."""

import csv
import fcntl
import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.messages import names, raises

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.errors import Stopped
from m2v_finetune.files import UNFINISHED
from m2v_finetune.model import TaskModel
from m2v_finetune.model.fingerprint import model_fingerprint
from m2v_finetune.prediction import Rendering, batches, predict_files
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.separation import Separation
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.variation import MIN_TRACKS, outputs_hardly_vary

RATE = 48_000
NUM_FILES = 5


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """A damaged file is tried again after a pause; that it may come back is tested elsewhere."""
    monkeypatch.setattr("m2v_finetune.data.reading.RETRY_PAUSES_SECONDS", ())


def build(task, seed=0):
    torch.manual_seed(seed)
    kind = "linear" if isinstance(task, Separation) else "mlp"  # a mask has one kind
    return TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind=kind, hidden_size=16),
        tuning=TuningConfig(),
        window_seconds=0.5,
    ).eval()


@pytest.fixture(scope="module")
def tagger():
    return build(Tagging(labels=("drums", "piano", "slow, sad"), label_column="tags"))


@pytest.fixture(scope="module")
def tracker():
    return build(BeatTracking(label_column="beats"))


@pytest.fixture(scope="module")
def separator():
    return build(
        Separation(stems=("drums", "other"), label_column="stems", sample_rate=8000, num_channels=1)
    )


def write_song(path, *, seed, bad_at=None):
    samples = 0.3 * np.random.default_rng(seed).standard_normal(RATE // 2, dtype=np.float32)
    # The end is looked at first: only what lies before it is noticed while the track is read.
    samples = np.concatenate([samples, np.zeros(3 * RATE // 2, np.float32)])
    if bad_at is not None:
        samples[bad_at] = np.nan
    soundfile.write(os.fsencode(path), samples, RATE, format="WAV", subtype="FLOAT")


@pytest.fixture
def songs(tmp_path):
    """Five files, of which nothing is wrong."""
    folder = tmp_path / "songs"
    folder.mkdir()
    paths = [folder / f"song-{number}.wav" for number in range(NUM_FILES)]
    for number, path in enumerate(paths):
        write_song(path, seed=number)
    return paths


@pytest.fixture
def alone(monkeypatch):
    """Each file has batches of its own, so that the next one is not read before."""
    monkeypatch.setattr(batches, "BATCH_WINDOWS", 1)
    monkeypatch.setattr(batches, "batches_at_once", lambda model: 1)


@pytest.fixture
def computed(alone, monkeypatch):
    """The names of the files whose windows are read, each by itself."""
    names = []
    load = batches.track_loader

    def counted(windows, **options):
        names.extend(checked.track.path.name for checked in windows.tracks)
        return load(windows, **options)

    monkeypatch.setattr(batches, "track_loader", counted)
    return names


def run(model, files, output, kind="csv", *, on_bad_file="stop", **options):
    return predict_files(
        model,
        files,
        rendering=Rendering(format=kind, **options),
        output=output,
        on_bad_file=on_bad_file,
    )


def rows(path):
    return list(csv.reader(path.read_text().splitlines()))


def record_of(output):
    return output.with_name(f"{output.name}.unfinished")


def test_what_was_computed_before_a_damaged_file_is_kept_and_not_computed_again(
    tagger, songs, tmp_path, computed
):
    run(tagger, songs, tmp_path / "whole.csv")
    write_song(songs[3], seed=3, bad_at=RATE // 3)
    output = tmp_path / "out.csv"
    computed.clear()
    with raises("audio-not-finite", "song-3.wav: ", "3 of 5", "--on-bad-file skip") as stopped:
        run(tagger, songs, output)
    assert str(stopped.value).count("song-3.wav") == 1
    header, *found = rows(output)
    assert header == ["path", "drums", "piano", "slow, sad"]
    assert [row[0] for row in found] == [str(path) for path in songs[:3]]
    assert record_of(output).exists()
    write_song(songs[3], seed=3)
    done = run(tagger, songs, output)
    assert (done.num_computed, done.num_resumed, done.failed) == (2, 3, [])
    assert computed == [f"song-{number}.wav" for number in (0, 1, 2, 3, 3, 4)]
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not record_of(output).exists()


@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
def test_a_window_that_does_not_fit_in_memory(tagger, songs, tmp_path, computed, on_bad_file):
    run(tagger, songs, tmp_path / "complete.csv")
    computed.clear()

    def refuse(module, inputs):
        if len(computed) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = tagger.backbone.network.encoder.layers[1].register_forward_pre_hook(refuse)
    output = tmp_path / "out.csv"
    try:
        with raises("predict-out-of-memory", "0.5 s", "2 of 5", output):
            run(tagger, songs, output, on_bad_file=on_bad_file)
    finally:
        hook.remove()
        tagger.micro_batcher.size = None
    assert [row[0] for row in rows(output)[1:]] == [str(path) for path in songs[:2]]
    done = run(tagger, songs, output)
    assert (done.num_computed, done.num_resumed) == (3, 2)
    assert output.read_bytes() == (tmp_path / "complete.csv").read_bytes()


@pytest.mark.parametrize("bad", [[0], [3], [4], [1, 2], [0, 1, 2, 3]])
def test_skip_resumes_and_lists_what_failed(tagger, songs, tmp_path, bad):
    run(tagger, [one for number, one in enumerate(songs) if number not in bad], tmp_path / "good")
    for number in bad:
        write_song(songs[number], seed=number, bad_at=10)
    songs.insert(2, tmp_path / "absent.mp3")
    done = run(tagger, songs, tmp_path / "out", "csv", on_bad_file="skip")
    assert [why.partition(":")[0] for why in done.failed] == sorted(
        [*(str(tmp_path / "songs" / f"song-{number}.wav") for number in bad), str(songs[2])],
        key=list(map(str, songs)).index,
    )
    assert done.num_computed == NUM_FILES - len(bad)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "good").read_bytes()


@pytest.mark.parametrize("on_bad_file", ["stop", "skip"])
@pytest.mark.parametrize("kind", ["csv", "json", "beats"])
def test_where_nothing_can_be_read_nothing_is_left(tagger, tracker, tmp_path, on_bad_file, kind):
    bad = tmp_path / "bad.wav"
    bad.touch()
    with raises("audio-empty" if on_bad_file == "stop" else "predict-unreadable-files", f"{bad}: "):
        run(
            tracker if kind == "beats" else tagger,
            [bad],
            tmp_path / "out",
            kind,
            on_bad_file=on_bad_file,
        )
    assert list(tmp_path.iterdir()) == [bad]


def test_a_signal_between_files_keeps_what_is_done(tagger, songs, tmp_path, monkeypatch):
    stopping(monkeypatch, Tagging, at=3)
    output = tmp_path / "out.json"
    with pytest.raises(Stopped) as ended:
        run(tagger, songs, output, "json")
    assert names(str(ended.value), 2, 5)
    assert ended.value.signal_number == 15
    assert [json.loads(line)["path"] for line in output.read_text().splitlines()] == [
        str(path) for path in songs[:2]
    ]


def stopping(monkeypatch, task, *, at):
    """Let a signal arrive when the n-th file of a task is predicted."""
    predict = task.predict
    calls = []

    def stopped(self, checked, windows):
        calls.append(checked)
        if len(calls) == at:
            raise Stopped(15, "")
        return predict(self, checked, windows)

    monkeypatch.setattr(task, "predict", stopped)


@pytest.fixture
def sizes(tagger, monkeypatch):
    """The number of windows of each batch that the model computes."""
    found = []
    score = tagger.score
    monkeypatch.setattr(
        tagger, "score", lambda waveforms: (found.append(len(waveforms)), score(waveforms))[1]
    )
    monkeypatch.setattr(batches, "batches_at_once", lambda model: 1)
    return found


def test_short_files_share_a_batch_and_a_long_one_has_its_own(tagger, songs, tmp_path, sizes):
    long = tmp_path / "long.wav"
    soundfile.write(long, np.tile(soundfile.read(songs[0])[0], 5), RATE)
    files = [*songs[:2], long, *songs[2:]]
    run(tagger, files, tmp_path / "out.csv")
    windows = [len(tagger.predict(path).timeline) for path in files]
    assert windows == [4, 4, 20, 4, 4, 4]
    assert sizes[:4] == [8, 16, 4, 12]
    _, *found = rows(tmp_path / "out.csv")
    for path, (name, *scores) in zip(files, found, strict=True):
        assert name == str(path)
        expected = list(tagger.predict(path).scores.values())
        np.testing.assert_allclose(list(map(float, scores)), expected, rtol=0, atol=1e-6)


def test_a_resumed_command_has_the_batches_of_one_that_was_not_stopped(
    tagger, songs, tmp_path, sizes, monkeypatch
):
    run(tagger, songs, tmp_path / "whole.csv")
    assert sizes == [16, 4]
    with monkeypatch.context() as patches:
        stopping(patches, Tagging, at=3)
        with pytest.raises(Stopped):
            run(tagger, songs, tmp_path / "out.csv")
    sizes.clear()
    done = run(tagger, songs, tmp_path / "out.csv")
    assert (done.num_resumed, done.num_computed) == (2, 3)
    assert sizes == [16, 4]
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_file_that_is_done_and_gone_since_is_no_problem(tagger, songs, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    with monkeypatch.context() as patches:
        stopping(patches, Tagging, at=3)
        with pytest.raises(Stopped):
            run(tagger, songs, output)
    songs[0].unlink()
    done = run(tagger, songs, output)
    assert (done.num_resumed, done.num_computed, done.failed) == (2, 3, [])
    assert [name for name, *_ in rows(output)[1:]] == list(map(str, songs))


def test_units_that_are_done_are_not_read_again(tagger, songs, tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(batches, "UNIT_FILES", 2)
    with monkeypatch.context() as patches:
        stopping(patches, Tagging, at=4)
        with pytest.raises(Stopped):
            run(tagger, songs, tmp_path / "out.csv")
    looked_at = []
    check = batches.check_file
    monkeypatch.setattr(
        batches, "check_file", lambda path: (looked_at.append(path), check(path))[1]
    )
    sizes.clear()
    run(tagger, songs, tmp_path / "out.csv")
    assert looked_at == songs[2:]
    assert sizes == [8, 4]
    assert [name for name, *_ in rows(tmp_path / "out.csv")[1:]] == list(map(str, songs))


@pytest.mark.parametrize("change", ["longer", "damaged", "repaired"])
def test_a_file_that_changes_while_its_batch_is_made(tagger, songs, tmp_path, change, monkeypatch):
    """Files are looked at before their batch is read: the result is that of the new content."""
    new = tmp_path / "new.wav"
    write_song(new, seed=77, bad_at=RATE // 3 if change == "damaged" else None)
    if change == "longer":
        samples, _ = soundfile.read(new)
        soundfile.write(new, np.concatenate([samples, samples[: RATE // 2]]), RATE)
    if change == "repaired":
        write_song(songs[1], seed=1, bad_at=RATE // 3)
    load = batches.track_loader

    def changed(windows, **options):
        shutil.copy(new, songs[1])
        return load(windows, **options)

    monkeypatch.setattr(batches, "track_loader", changed)
    monkeypatch.setattr(batches, "batches_at_once", lambda model: 1)
    done = run(tagger, songs, tmp_path / "out.csv", on_bad_file="skip")
    found = {name: scores for name, *scores in rows(tmp_path / "out.csv")[1:]}
    if change == "damaged":
        assert [str(songs[1])] == [why.partition(": ")[0] for why in done.failed]
        assert list(found) == [str(path) for path in songs if path != songs[1]]
        return
    assert done.failed == []
    expected = list(tagger.predict(new).scores.values())
    np.testing.assert_allclose(list(map(float, found[str(songs[1])])), expected, rtol=0, atol=1e-6)


def test_a_signal_at_the_first_file_keeps_the_results_of_an_earlier_command(
    tracker, songs, tmp_path, monkeypatch
):
    run(tracker, songs, tmp_path / "whole", "beats")
    output = tmp_path / "out"
    write_song(songs[0], seed=0, bad_at=RATE // 3)
    with monkeypatch.context() as patches:
        stopping(patches, BeatTracking, at=4)  # songs[0] is asked about, too
        with pytest.raises(Stopped):
            run(tracker, songs, output, "beats", on_bad_file="skip")
    write_song(songs[0], seed=0)
    with monkeypatch.context() as patches:
        stopping(patches, BeatTracking, at=1)
        with pytest.raises(Stopped) as ended:
            run(tracker, songs, output, "beats", on_bad_file="skip")
    assert names(str(ended.value), 2, 5, output)
    done = run(tracker, songs, output, "beats", on_bad_file="skip")
    assert (done.num_resumed, done.num_computed) == (2, 3)
    for path in (tmp_path / "whole").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()


def interrupted(model, songs, output, kind="csv", **options):
    """Leave an output with the results of three files."""
    kept = songs[3].read_bytes()
    times = songs[3].stat()
    write_song(songs[3], seed=3, bad_at=10)
    shown = (
        str(songs[3]).encode("utf-8", "backslashreplace").decode("utf-8")
    )  # as messages escape names
    with raises("audio-not-finite", f"{shown}: ", "3 of 5"):
        run(model, songs, output, kind, **options)
    songs[3].write_bytes(kept)
    os.utime(songs[3], ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "json", "named": "format"},
        {"timeline": True, "named": "timeline"},
        {"top": 3, "named": "top"},
        {"model": lambda: build(Tagging(labels=("drums", "piano", "slow, sad"), label_column="t"))},
        {
            "model": lambda: build(
                Tagging(labels=("drums", "piano", "slow, sad"), label_column="tags"), seed=1
            )
        },
        {"precision": "bfloat16", "named": "precision"},
        {"files": slice(1, None)},
    ],
    ids=[
        "format",
        "time line",
        "top",
        "task",
        "weights",
        "precision",
        "without a file that is done",
    ],
)
def test_another_command_does_not_resume(tagger, songs, tmp_path, other, computed, monkeypatch):
    output = tmp_path / "out.csv"
    interrupted(tagger, songs, output)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
    assert len(before) == 2
    computed.clear()
    options = {key: value for key, value in other.items() if key in ("kind", "timeline", "top")}
    model = other["model"]() if "model" in other else tagger
    monkeypatch.setattr(model, "_precision", other.get("precision", "float32"))
    code, named = "output-other-settings", other.get("named", "model")
    if "files" in other:
        code, named = "output-other-files", songs[0]
    with raises(code, output, record_of(output), named):
        run(model, songs[other.get("files", slice(None))], output, **options)
    assert computed == []
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*")} == before


def test_more_files_and_a_model_from_another_place_resume(tagger, songs, tmp_path, computed):
    output = tmp_path / "out.csv"
    interrupted(tagger, songs, output)
    tagger.save_pretrained(tmp_path / "elsewhere")
    computed.clear()
    more = tmp_path / "songs" / "more.wav"
    write_song(more, seed=9)
    run(TaskModel.from_pretrained(tmp_path / "elsewhere"), [more, *songs], output)
    assert computed == ["more.wav", "song-3.wav", "song-4.wav"]
    assert len(rows(output)) == 1 + NUM_FILES + 1


def test_a_file_that_is_named_twice_has_two_rows_over_a_resume_too(tagger, songs, tmp_path):
    twice = [songs[0], songs[0], songs[1], songs[3], songs[0]]
    run(tagger, twice, tmp_path / "whole.csv")
    write_song(songs[3], seed=3, bad_at=10)
    with raises("audio-not-finite", f"{songs[3]}: ", "3 of 5"):
        run(tagger, twice, tmp_path / "out.csv")
    write_song(songs[3], seed=3)
    run(tagger, twice, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_music_file_that_changed_is_computed_again(tagger, songs, tmp_path, computed):
    output = tmp_path / "out.csv"
    interrupted(tagger, songs, output)
    write_song(songs[1], seed=77)
    computed.clear()
    run(tagger, songs, output)
    assert computed == [f"song-{number}.wav" for number in (1, 2, 3, 4)]
    run(tagger, songs, tmp_path / "whole.csv")
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_results_of_a_music_file_that_changed_are_replaced_in_a_folder(
    tracker, songs, tmp_path, computed
):
    output = tmp_path / "out"
    interrupted(tracker, songs, output, "beats")
    write_song(songs[1], seed=77)
    computed.clear()
    run(tracker, songs, output, "beats")
    assert computed == ["song-1.wav", "song-3.wav", "song-4.wav"]
    run(tracker, songs, tmp_path / "whole", "beats")
    for path in (tmp_path / "whole").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content + b"mine\n",
        lambda content: content.replace(b"0.", b"1.", 1),
        lambda content: b"mine",
        lambda content: content[:-3] + b"xyz",
    ],
    ids=["a line more", "another number", "another file", "another end"],
)
def test_an_unfinished_output_that_somebody_changed_is_refused(tagger, songs, tmp_path, change):
    output = tmp_path / "out.csv"
    interrupted(tagger, songs, output)
    changed = change(output.read_bytes())
    output.write_bytes(changed)
    if changed == b"mine":  # shorter than the first result: nothing of it is this program's
        run(tagger, songs, output)
        assert rows(output)[0][0] == "path"
        return
    with raises("output-changed", output):
        run(tagger, songs, output)
    assert output.read_bytes() == changed


def test_an_output_that_was_deleted_is_started_again(tagger, songs, tmp_path, computed):
    output = tmp_path / "out.csv"
    interrupted(tagger, songs, output)
    output.unlink()
    computed.clear()
    run(tagger, songs, output)
    assert len(computed) == NUM_FILES


@pytest.mark.parametrize(
    "content", [b"my notes\n", b"{}\n", b"[1]\n", b"\xff\n", b"[" * 9999 + b"\n"]
)
def test_a_record_of_somebody_else_is_left_alone(tagger, songs, tmp_path, content):
    output = tmp_path / "out.csv"
    record_of(output).write_bytes(content)
    with raises("output-record-unreadable", record_of(output)):
        run(tagger, songs, output)
    assert record_of(output).read_bytes() == content
    assert not output.exists()


def test_one_process_at_a_time_writes_an_output(tagger, songs, tmp_path):
    output = tmp_path / "out.csv"
    interrupted(tagger, songs, output)
    with record_of(output).open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with raises("output-locked", output):
            run(tagger, songs, output)
    run(tagger, songs, output)


@contextmanager
def no_file_longer_than(num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ROOMS = [*(("csv", room) for room in (100, 350, 500, 700)), ("json", 700), ("text", 350)]


@pytest.mark.parametrize(
    ("kind", "room"),
    [
        *ROOMS,
        *(
            pytest.param(kind, room, marks=pytest.mark.exhaustive)
            for kind in ("json", "text")
            for room in (100, 350, 500, 700)
            if (kind, room) not in ROOMS
        ),
    ],
)
def test_a_full_disk_leaves_whole_results(tagger, songs, tmp_path, kind, room):
    run(tagger, songs, tmp_path / "whole", kind, timeline=True)
    whole = (tmp_path / "whole").read_bytes()
    output = tmp_path / "out"
    with no_file_longer_than(room), raises("output-not-writable", output):
        run(tagger, songs, output, kind, timeline=True)
    part = output.read_bytes() if output.exists() else b""
    assert whole.startswith(part)
    assert part == b"" or part.endswith(b"\n")
    run(tagger, songs, output, kind, timeline=True)
    assert output.read_bytes() == whole


# -- formats with files of their own --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["beats", "wav"])
def test_files_of_an_unfinished_command_are_skipped_and_others_not_touched(
    tracker, separator, songs, tmp_path, kind, computed
):
    model = tracker if kind == "beats" else separator
    suffix = ".beats" if kind == "beats" else ""
    run(model, songs, tmp_path / "whole", kind)
    output = tmp_path / "out"
    interrupted(model, songs, output, kind)
    made = [output / f"song-{number}{suffix}" for number in range(3)]
    assert {path for path in output.iterdir() if path.suffix != ".unfinished"} == set(made)
    times = {path: path.stat().st_mtime_ns for path in made}

    foreign = output / f"song-4{suffix}"
    foreign.mkdir() if kind == "wav" else foreign.write_text("mine")
    with raises("output-exists", foreign) as refused:
        run(model, songs, output, kind)
    assert str(made[0]) not in str(refused.value)
    foreign.rmdir() if kind == "wav" else foreign.unlink()

    computed.clear()
    run(model, songs, output, kind)
    assert computed == ["song-3.wav", "song-4.wav"]
    assert {path: path.stat().st_mtime_ns for path in made} == times
    assert contents(output) == contents(tmp_path / "whole")
    with raises("output-exists"):  # it is finished now
        run(model, songs, output, kind)


def contents(folder):
    """Return what is in files; of stems their samples, as libsndfile writes the time into such a file."""
    return {
        str(path.relative_to(folder)): soundfile.read(path)[0].tolist()
        if path.suffix == ".wav"
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["beats", "wav"])
def test_what_was_written_in_part_is_never_taken_for_whole(
    tracker, separator, songs, tmp_path, kind
):
    model = tracker if kind == "beats" else separator
    suffix = ".beats" if kind == "beats" else ""
    run(model, songs, tmp_path / "whole", kind)
    output = tmp_path / "out"
    interrupted(model, songs, output, kind)
    part = output / UNFINISHED.format(name=f"song-3{suffix}")
    if kind == "wav":
        part.mkdir()
        (part / "drums.wav").write_bytes(b"RIFF")
    else:
        part.write_text("0.5")
    run(model, songs, output, kind)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_result_that_was_deleted_is_made_again(tracker, songs, tmp_path, computed):
    output = tmp_path / "out"
    interrupted(tracker, songs, output, "beats")
    (output / "song-1.beats").unlink()
    computed.clear()
    run(tracker, songs, output, "beats")
    assert computed == ["song-1.wav", "song-3.wav", "song-4.wav"]


def test_results_may_go_to_the_working_folder(tracker, songs, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(tracker, songs[:1], Path(), "beats")
    assert [path.name for path in Path().iterdir()] == ["song-0.beats"]


def test_a_damaged_song_leaves_no_stems(separator, songs, tmp_path):
    write_song(songs[0], seed=0, bad_at=RATE // 3)
    done = run(separator, songs[:2], tmp_path / "out", "wav", on_bad_file="skip")
    assert len(done.failed) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["song-1"]


# -- names, and what the model gives --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"caf\xe9.wav", b"\xff\xfe.wav", "caf\u0301e \u266b.wav".encode()]
)
def test_names_of_any_bytes_are_read_and_written(tagger, tracker, separator, songs, tmp_path, name):
    odd = songs[0].with_name(os.fsdecode(name))
    shutil.copy(songs[0], odd)
    run(tagger, [odd], tmp_path / "out.csv")
    shown = str(odd).encode(errors="backslashreplace").decode()
    assert rows(tmp_path / "out.csv")[1][0] == shown
    run(tagger, [odd], tmp_path / "out.json", "json")
    [line] = (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["path"] == str(odd)  # the very name: JSON's own escape gives it back
    run(tagger, [odd], tmp_path / "out.txt", "text")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").startswith(shown)
    run(tracker, [odd], tmp_path / "beats", "beats")
    run(separator, [odd], tmp_path / "stems", "wav")
    for folder in ("beats", "stems"):
        [made] = (tmp_path / folder).iterdir()
        assert os.fsencode(made.name.removesuffix(".beats")) == name.removesuffix(b".wav")


def test_an_interrupted_command_with_such_names_resumes(tagger, songs, tmp_path, computed):
    odd = [path.with_name(os.fsdecode(b"\xe9" + os.fsencode(path.name))) for path in songs]
    for old, new in zip(songs, odd, strict=True):
        old.rename(new)
    interrupted(tagger, odd, tmp_path / "out.csv")
    computed.clear()
    run(tagger, odd, tmp_path / "out.csv")
    assert len(computed) == 2


def test_the_fingerprint_is_of_what_is_predicted(tagger, tmp_path):
    tagger.save_pretrained(tmp_path / "model")
    again = TaskModel.from_pretrained(tmp_path / "model")
    assert model_fingerprint(again) == model_fingerprint(tagger)
    again.hop_seconds /= 2
    assert model_fingerprint(again) != model_fingerprint(tagger)


def test_outputs_of_all_files_are_counted(tagger, songs, tmp_path):
    done = run(tagger, songs, tmp_path / "out.csv")
    assert done.variation.num_rows == NUM_FILES * 4  # windows of 0.5 s
    assert len(done.variation.stds) == 3
    assert not outputs_hardly_vary(done.variation, num_tracks=NUM_FILES)
    assert outputs_hardly_vary(done.variation, num_tracks=MIN_TRACKS)
