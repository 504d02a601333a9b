"""`m2v data check`, as it is typed: what is not read is named beside what is."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.forked import run_forked


def check(source: Path) -> subprocess.CompletedProcess[str]:
    return run_forked(["m2v", "data", "check", source])


def write(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, 3200), 16_000)


def test_a_label_behind_a_link_counts_and_what_is_not_read_is_named(tmp_path):
    for number in range(6):
        for label in ("music/jazz", "music/pop", "drive/rock"):
            write(tmp_path / label / f"{number}.wav", number)
    music = tmp_path / "music"
    (music / "rock").symlink_to(tmp_path / "drive" / "rock")
    (music / "blues").symlink_to(tmp_path / "drive" / "gone")
    write(music / "loose.wav")
    for name in ("jazz/a.mid", "jazz/b.mid", "notes.txt"):
        (music / name).touch()
    done = check(music)
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()
    assert re.fullmatch(r"music: .* 18 .*\(0\.00 h\)\.", out[0])
    assert re.search(r"tags: 3 .*: jazz \(6\), pop \(6\), rock \(6\)", out[1])
    lines = [line.partition(f"{music}: ")[2] for line in done.stderr.splitlines()]
    gone = tmp_path / "drive" / "gone"
    for pattern in (r"3 .* 2 .*: \.mid \(2\), \.txt \(1\)", "1 .*: loose.wav", f"blues.* {gone}"):
        assert len([line for line in lines if re.search(pattern, line)]) == 1, pattern


def test_one_file_in_two_splits_is_named(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        write(tmp_path / f"{name}.wav", number)
    (tmp_path / "d.wav").symlink_to("a.wav")
    lines = ["path,split", "a.wav,train", "b.wav,valid", "c.wav,eval", "d.wav,testing"]
    (tmp_path / "songs.csv").write_text("\n".join(lines))
    done = check(tmp_path / "songs.csv")
    assert done.returncode == 2
    assert re.search("songs.csv:2: .*'a.wav' in train .*'d.wav' in test", done.stderr)


ONE_LABEL = {
    "folders": {"jazz/a.wav": None, "jazz/b.wav": None},
    "a CSV": {"songs.csv": "path,genre,pitch\njazz/a.wav,x,60\njazz/b.wav,x,61\n"},
    "a list": {
        "songs.jsonl": '{"path": "jazz/a.wav", "tags": ["x"]}\n{"path": "jazz/b.wav", "tags": "x"}'
    },
}


@pytest.mark.parametrize("case", ONE_LABEL)
def test_a_label_of_every_track_is_named(tmp_path, case):
    for number, name in enumerate(("a", "b")):
        write(tmp_path / "jazz" / f"{name}.wav", number)
    source = tmp_path
    for name, text in ONE_LABEL[case].items():
        if text is not None:
            source = tmp_path / name
            source.write_text(text)
    done = check(source)
    assert done.returncode == 0, done.stderr
    label = "jazz" if case == "folders" else "x"
    assert f"1 label: {label} (2)" in done.stdout
    assert done.stderr.count("Every track has the label") == 1
    assert f"'{label}'" in done.stderr
