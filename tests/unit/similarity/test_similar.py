"""`m2v similar`: nearest tracks of a table, beside numpy's answer; which are left out; playlists."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet
from support.matrix import exhaustive
from support.messages import raises

from m2v_finetune import cli
from m2v_finetune.backbones.checkpoints import SHIPPED_DIR
from m2v_finetune.data.feature_tables import CATALOGUE_FILE
from m2v_finetune.data.values import printable
from m2v_finetune.similarity import VectorTable, similar_tracks, table, write_playlist
from m2v_finetune.similarity.exact import nearest_exact
from m2v_finetune.similarity.index import index_path, nearest_approximate

SIZE = 32


def write_table(folder: Path, vectors, *, names=None, paths=None, shard_rows: int = 2**14) -> Path:
    """Write a table of vectors; a row of None has none."""
    folder.mkdir(exist_ok=True)
    (folder / CATALOGUE_FILE).write_text("{}")
    there = [np.zeros(SIZE) if one is None else one for one in vectors]
    dtype = vectors.dtype if isinstance(vectors, np.ndarray) else np.float16
    flat = pa.array(np.concatenate(there).astype(dtype))
    mask = pa.array([one is None for one in vectors])
    names = names or [f"t{number}" for number in range(len(there))]
    columns = {
        "id": names,
        "path": paths or [f"/music/{name}.mp3" for name in names],
        "duration": [61.5] * len(there),
        "vector": pa.FixedSizeListArray.from_arrays(flat, SIZE, mask=mask),
        "error": pa.array([None if one is not None else "no" for one in vectors], pa.string()),
    }
    rows = pa.table(columns)
    for number, start in enumerate(range(0, len(there), shard_rows)):
        parquet.write_table(
            rows.slice(start, shard_rows),
            folder / f"part-{number:05d}.parquet",
            row_group_size=5000,
        )
    return folder


def m2v(*argv: object) -> None:
    arguments = cli.build_parser().parse_args(list(map(str, argv)))
    arguments.command(arguments)


@pytest.mark.parametrize("dtype", [np.float16, *exhaustive(np.float32)])
def test_the_exact_search_is_that_of_numpy(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(table, "BATCH_NUMBERS", 3000 * SIZE)  # several batches a shard
    vectors = np.random.default_rng(0).normal(size=(100_000, SIZE)).astype(dtype)
    opened = VectorTable.open(write_table(tmp_path / "table", vectors))
    queries = vectors[:5].astype(np.float32)
    units = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    for query, found in enumerate(nearest_exact(opened, queries, 50)):
        cosines = units @ units[query]
        np.testing.assert_array_equal(found.rows, np.argsort(-cosines, kind="stable")[:50])
        np.testing.assert_allclose(found.cosines, cosines[found.rows], atol=1e-12)
        if query == 0:
            tracks = similar_tracks(opened, "t0", top=49)
            assert [one.id for one in tracks] == [f"t{row}" for row in found.rows[1:]]


def test_the_approximate_index_finds_nearly_all(tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "cache"))
    vectors = np.random.default_rng(0).normal(size=(3000, SIZE)).astype(np.float16)
    vectors[7] = 0  # has no direction, and is in no index
    folder = write_table(tmp_path / "table", vectors)
    opened = VectorTable.open(folder)
    queries = vectors[100:150].astype(np.float32)
    exact, near = (search(opened, queries, 10) for search in (nearest_exact, nearest_approximate))
    found = [len(set(a.rows) & set(b.rows)) / 10 for a, b in zip(exact, near, strict=True)]
    record_property("recall@10 of the approximate index", float(np.mean(found)))
    assert np.mean(found) > 0.98
    for a, b in zip(exact, near, strict=True):  # equal rows have equal cosines: those of the table
        both = dict(zip(a.rows, a.cosines, strict=True))
        assert all(
            both.get(row, cosine) == cosine for row, cosine in zip(b.rows, b.cosines, strict=True)
        )
    kept = index_path(opened)
    assert kept.is_file()
    tracks = similar_tracks(opened, "t100", approximate=True, top=3)
    assert [one.id for one in tracks] == [f"t{row}" for row in exact[0].rows[1:4]]
    write_table(folder, -vectors)
    assert index_path(VectorTable.open(folder)) != kept  # another table has another index


def test_a_million_rows_use_the_index(tmp_path, monkeypatch):
    from m2v_finetune.similarity import nearest

    vectors = np.random.default_rng(0).normal(size=(20, SIZE))
    folder = write_table(tmp_path / "table", list(vectors))
    used = []
    monkeypatch.setattr(nearest, "EXACT_ROWS", 20)
    monkeypatch.setattr(
        nearest, "nearest_approximate", lambda *words: used.append(1) or nearest_exact(*words)
    )
    similar_tracks(folder, "t1")
    assert used
    assert nearest.EXACT_ROWS == 20
    monkeypatch.setattr(nearest, "EXACT_ROWS", 21)
    similar_tracks(folder, "t1")
    assert used == [1]


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_equal_and_almost_equal_vectors_are_ordered_exactly(tmp_path, monkeypatch, noise):
    """By cosines of float64, equal ones by their rows, though those of float32 cannot tell them apart."""
    monkeypatch.setattr(table, "BATCH_NUMBERS", 700 * SIZE)
    generator = np.random.default_rng(0)
    near = generator.normal(size=SIZE) + noise * generator.normal(size=(3000, SIZE))
    others = generator.normal(size=(100, SIZE))
    vectors = np.concatenate([others, near]).astype(np.float32)
    query = vectors[150]
    wide = vectors.astype(np.float64)
    unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    cosines = (wide * unit).sum(axis=1) / np.linalg.norm(wide, axis=1)
    expected = np.lexsort((np.arange(len(vectors)), -cosines))[:10]
    opened = VectorTable.open(write_table(tmp_path / "table", vectors))
    [found] = nearest_exact(opened, query[None], 10)
    np.testing.assert_array_equal(found.rows, expected)


def test_ties_rows_without_vectors_and_versions(tmp_path):
    generator = np.random.default_rng(0)
    song, other = np.eye(SIZE)[0], np.eye(SIZE)[0] + 0.5 * np.eye(SIZE)[1]
    infinite = np.full(SIZE, np.inf)
    rows = [song, None, np.zeros(SIZE), infinite, 2 * song, other, other, -song]
    names = ["song", "bad", "zero", "infinite", "copy", "other", "other-mp3", "far"]
    noise = [0.01 * generator.normal(size=SIZE) - song for _ in range(5)]
    folder = write_table(
        tmp_path / "table",
        [*rows, *noise],
        names=[*names, *(f"n{number}" for number in range(5))],
        paths=[f"/m/{name}" for name in [*names[:-1], "other", *(f"n{n}" for n in range(5))]],
    )
    found = similar_tracks(folder, "song", top=3)
    # Of a tie the first row comes first.
    assert [one.id for one in found] == ["copy", "other", "other-mp3"]
    assert found[0].cosine == pytest.approx(1, abs=1e-12)
    assert found[1].cosine == found[2].cosine == pytest.approx(1 / np.sqrt(1.25), abs=1e-3)
    versions = similar_tracks(folder, "song", top=100, max_cosine=0.999)
    # No version of the query, none of a track listed before, and a file once.
    assert versions[0].id == "other"
    assert not {"copy", "other-mp3", "far", "song"} & {one.id for one in versions}
    everything = {one.id for one in similar_tracks(folder, "song", top=100)}
    assert everything == {"copy", "other", "other-mp3", *(f"n{number}" for number in range(5))}
    by_vector = similar_tracks(folder, other.astype(np.float32), top=2)
    assert [one.id for one in by_vector] == ["other", "other-mp3"]
    for name in ("bad", "zero", "infinite"):
        with raises("similar-query-without-vector", name):
            similar_tracks(folder, name)


def test_the_command_prints_tracks_and_writes_a_playlist(tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(20, SIZE))
    folder = write_table(tmp_path / "table", list(vectors))
    playlist = tmp_path / "radio.m3u"
    m2v("similar", folder, "/music/t3.mp3", "--top", 2, "--playlist", playlist)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = similar_tracks(folder, "t3", top=2)
    assert [line[1:] for line in lines] == [[one.id, one.path] for one in expected]
    assert [float(line[0]) for line in lines] == pytest.approx(
        [one.cosine for one in expected], abs=5e-5
    )
    assert playlist.read_text() == "\n".join(
        ["#EXTM3U", "#EXTINF:62,t3", "/music/t3.mp3"]
        + [text for one in expected for text in (f"#EXTINF:62,{one.id}", one.path)]
        + [""]
    )
    with raises("playlist-exists", playlist):
        m2v("similar", folder, "t3", "--playlist", playlist)
    with raises("playlist-suffix", ".txt", ".m3u"):
        m2v("similar", folder, "t3", "--playlist", tmp_path / "radio.txt")


def test_a_playlist_names_files_whose_names_are_no_utf8(tmp_path):
    """A table has escapes in place of such bytes; a file whose own name looks like that is itself."""
    real, escaped = tmp_path / os.fsdecode(b"caf\xe9.wav"), tmp_path / "tea\\udce9.wav"
    for path in (real, escaped):
        path.touch()
    playlist = tmp_path / "radio.m3u"
    write_playlist(playlist, [(printable(str(path)), None) for path in (real, escaped)])
    lines = playlist.read_bytes().splitlines()
    assert [lines[2], lines[4]] == [os.fsencode(real), os.fsencode(escaped)]


def test_a_table_of_a_network_in_a_folder_is_searched_from_any_other(tmp_path, capsys, monkeypatch):
    shutil.copytree(SHIPPED_DIR / "random_small", tmp_path / "net")
    (tmp_path / "music").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(scale=0.1, size=8000)
        soundfile.write(tmp_path / "music" / f"{number}.wav", noise, 16000)
    shutil.copy(tmp_path / "music" / "1.wav", tmp_path / "song.wav")
    monkeypatch.chdir(tmp_path)
    options = ["--layer", 1, "--window-seconds", 0.5, "--num-workers", 0]
    m2v("embed", "net", "music", "--output", "table", *options)
    monkeypatch.chdir(tmp_path / "music")
    m2v("similar", "../table", "../song.wav", "--top", 1)
    assert capsys.readouterr().out.split("\t")[1] == "1.wav"


def test_a_file_is_embedded_as_the_table_was(tmp_path, capsys, monkeypatch):
    music = tmp_path / "music"
    music.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).normal(scale=0.1 + 0.1 * number, size=16000)
        soundfile.write(music / f"{number}.wav", np.cumsum(noise * 0.01), 16000)
    folder = tmp_path / "table"
    options = ["--layer", 1, "--precision", "float16", "--window-seconds", 0.5, "--num-workers", 0]
    m2v("embed", "random-small", music, "--output", folder, *options)
    shutil.copy(music / "2.wav", tmp_path / "song.wav")
    monkeypatch.chdir(tmp_path)
    m2v("similar", folder, "song.wav", "--playlist", "radio.m3u8")
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    # The copy, then what is near to the original.
    assert lines[0] == ["1.0000", "2.wav", str(music / "2.wav")]
    assert [line[1] for line in lines[1:]] == [one.id for one in similar_tracks(folder, "2.wav")]
    assert str(tmp_path / "song.wav") in Path("radio.m3u8").read_text().splitlines()
    # The query and other names of its file are left out, however the path is written.
    (tmp_path / "link.wav").symlink_to(music / "2.wav")
    for query in ("music/../music/2.wav", music / ".." / "music" / "2.wav", "link.wav"):
        m2v("similar", folder, query)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[1] for line in lines] == [
            one.id for one in similar_tracks(folder, "2.wav")
        ]
    with raises("similar-query-unreadable", "radio.m3u8"):
        similar_tracks(folder, "radio.m3u8")
    file = folder / CATALOGUE_FILE
    metadata = json.loads(file.read_text())
    metadata["identity"]["weights"] = "another"
    file.write_text(json.dumps(metadata))
    with raises("vectors-unreadable", folder):
        similar_tracks(folder, "2.wav")
    for part in folder.glob("part-*"):
        parquet.write_table(parquet.read_table(part).replace_schema_metadata(None), part)
    assert similar_tracks(folder, "2.wav")  # needs no network
    with raises("similar-other-network", "random-small", "weights"):
        similar_tracks(folder, "song.wav")
    windows = tmp_path / "windows"
    m2v("embed", "random-small", music, "--output", windows, *options, "--pool", "windows")
    with raises("vectors-of-windows", "--pool track"):
        similar_tracks(windows, "2.wav")


def test_what_is_no_table_is_refused(tmp_path):
    with raises("vectors-no-table", tmp_path, "m2v embed"):
        similar_tracks(tmp_path, "t1")
    folder = write_table(tmp_path / "table", [np.ones(SIZE)] * 2)
    with raises("similar-query-missing", "t7", folder):
        similar_tracks(folder, "t7")
    with raises("similar-query-shape", f"({SIZE},)"):
        similar_tracks(folder, np.ones(3, np.float32))
    with raises("similar-max-cosine", "1.5"):
        similar_tracks(folder, "t1", max_cosine=1.5)
    (tmp_path / "song.wav").write_bytes(b"")
    with raises("vectors-no-identity", CATALOGUE_FILE):
        similar_tracks(folder, str(tmp_path / "song.wav"))
    parquet.write_table(pa.table({"id": ["a"]}), folder / "part-00001.parquet")
    with raises("vectors-missing-column", "vector"):
        similar_tracks(folder, "t1")
    (folder / "part-00001.parquet").write_bytes(b"PAR1")
    with raises("vectors-unreadable", "part-00001"):
        similar_tracks(folder, "t1")
    (folder / "part-00001.parquet").unlink()
    (folder / CATALOGUE_FILE).write_text(json.dumps([]))
    with raises("vectors-no-identity", CATALOGUE_FILE):
        similar_tracks(folder, "t1")
