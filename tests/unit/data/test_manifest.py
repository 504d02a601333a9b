"""Manifests: what is read, and that every bad line is named with its place."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import fails, raises

from m2v_finetune.data.manifest import (
    DatasetInfo,
    Track,
    as_labels,
    problem_list,
    read_dataset_info,
    read_manifest,
    tracks_from_rows,
)
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.tasks.genre import Genre


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refuses(path: Path, content: str | bytes, code: str, *values: object) -> str:
    """Assert that a manifest is refused, and return the message."""
    write(path, content)
    with raises(code, *values) as raised:
        read_manifest(path)
    return str(raised.value)


def test_a_csv_is_read(tmp_path):
    path = write(
        tmp_path / "songs.csv",
        'path,tags,split,artist\na.mp3,rock;pop,train,"Simon, Garfunkel"\nsub/b.wav,,test,\n',
    )
    first, second = read_manifest(path)
    assert (first.id, first.path, first.split) == ("a.mp3", tmp_path / "a.mp3", "train")
    assert first.columns == {"tags": "rock;pop", "artist": "Simon, Garfunkel"}
    assert first.origin == "songs.csv:2"
    assert second.path == tmp_path / "sub" / "b.wav"
    assert second.columns == {"tags": "", "artist": ""}
    assert second.origin == "songs.csv:3"


def test_a_jsonl_is_read_with_its_types_and_blank_lines(tmp_path):
    rows = [
        {"file_name": "a.mp3", "tags": ["rock"], "tempo_bpm": 120.5, "id": "first"},
        {"path": "/music/b.mp3", "tags": []},
    ]
    text = json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1]) + "\n"
    first, second = read_manifest(write(tmp_path / "m.jsonl", text))
    assert (first.id, first.path, first.split) == ("first", tmp_path / "a.mp3", None)
    assert first.columns == {"tags": ["rock"], "tempo_bpm": 120.5}
    assert (second.id, second.path, second.origin) == (
        "/music/b.mp3",
        Path("/music/b.mp3"),
        "m.jsonl:3",
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_spreadsheets_write_is_read(tmp_path, newline, mark):
    text = newline.join(["path,tags", "é.mp3,a", ""]).encode()
    (track,) = read_manifest(write(tmp_path / "m.csv", mark + text))
    assert track.path == tmp_path / "é.mp3"
    assert track.columns == {"tags": "a"}


@pytest.mark.parametrize(
    ("written", "split"),
    [
        ("train", "train"),
        ("training", "train"),
        ("Train", "train"),
        ("validation", "validation"),
        ("valid", "validation"),
        ("val", "validation"),
        ("DEV", "validation"),
        ("test", "test"),
        ("testing", "test"),
        ("eval", "test"),
        (" Evaluation ", "test"),
    ],
)
def test_names_of_splits(tmp_path, written, split):
    (track,) = read_manifest(write(tmp_path / "m.csv", f"path,split\na.mp3,{written}\n"))
    assert track.split == split


def rows_of(tmp_path, *rows):
    path = tmp_path / "m.jsonl"
    return read_manifest(write(path, "".join(json.dumps(row) + "\n" for row in rows)))


NAN = float("nan")
MISSING = [None, "", "  ", "\t", NAN]


@pytest.mark.parametrize("value", MISSING)
def test_null_and_blank_are_missing_in_every_column(tmp_path, value):
    row = {"path": value, "file_name": "a.wav", "split": value, "id": value, "tags": value}
    (track,) = rows_of(tmp_path, row)
    assert (track.id, track.path, track.split) == ("a.wav", tmp_path / "a.wav", None)
    assert as_labels(track, "tags") == []


@pytest.mark.parametrize(
    ("value", "name"),
    [(0, "0"), (0.0, "0"), (1.0, "1"), (False, "false"), (True, "true"), (0.5, "0.5"), ("0", "0")],
)
def test_numbers_and_booleans_are_ids(tmp_path, value, name):
    first, second = rows_of(tmp_path, {"path": "a.wav", "id": value}, {"path": "b.wav", "id": None})
    assert (first.id, second.id) == (name, "b.wav")
    with raises("manifest-duplicate-id", "m.jsonl:2:", f"'{name}'", "m.jsonl:1"):
        rows_of(tmp_path, {"path": "a.wav", "id": value}, {"path": "b.wav", "id": name})


NESTED = [[], {}, ["a.wav"], {"path": "a.wav"}]
NO_TEXT = [(c, v) for c in ("path", "split") for v in (0, 0.0, False, 7, True, *NESTED)]


@pytest.mark.parametrize(("column", "value"), [*NO_TEXT, *(("id", v) for v in NESTED)])
def test_what_is_no_text_is_no_path_and_no_split(tmp_path, column, value):
    """Nor is it passed over: where `path` is 0, `file_name` does not count."""
    row = {"path": "a.wav", "file_name": "b.wav", "split": "train"} | {column: value}
    codes = {"split": "manifest-unknown-split", "id": "manifest-bad-id"}
    code = codes.get(column, "manifest-bad-path")
    with raises(code, "m.jsonl:1: ", repr(value)):
        rows_of(tmp_path, row)


@pytest.mark.parametrize("write_name", [str.upper, str.capitalize, " {} ".format])
def test_columns_are_known_in_capitals(tmp_path, write_name):
    names = [write_name(name) for name in ("path", "split", "id")]
    lines = ",".join(names) + "\na.wav,dev,0\nb.wav,train,1\n"
    tracks = read_manifest(write(tmp_path / "m.csv", lines))
    assert [(t.id, t.path.name, t.split) for t in tracks] == [
        ("0", "a.wav", "validation"),
        ("1", "b.wav", "train"),
    ]


@pytest.mark.parametrize("name", ["split", "artist", "tags", "id", "path", "mine"])
@pytest.mark.parametrize("write_name", [str.upper, str.capitalize])
def test_columns_that_differ_in_case_are_refused_where_both_have_values(tmp_path, name, write_name):
    cells = {"path": "a.wav", "split": "train", name: "x.wav"} | (
        {"split": "test"} if name == "split" else {}
    )
    twin = write_name(name)
    both = [{**cells, twin: cells[name]}]
    apart = [{"path": "b.wav", "split": "test", **cells}, {"path": "b.wav", twin: cells[name]}]
    if name in ("path", "split"):
        apart[1] = {"path": "b.wav", "split": "test", twin: cells[name]}
    for rows in (both, apart):
        names = list(dict.fromkeys(column for row in rows for column in row))
        lines = [names, *([row.get(column, "") for column in names] for row in rows)]
        text = "".join(",".join(line) + "\n" for line in lines)
        refuses(tmp_path / "m.csv", text, "manifest-duplicate-column", repr(name), repr(twin))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        refuses(tmp_path / "m.jsonl", text, "manifest-duplicate-column", repr(name), repr(twin))
    spaced = "".join(json.dumps({**row, f"{name} ": "y"}) + "\n" for row in both)
    refuses(tmp_path / "m.jsonl", spaced, "manifest-duplicate-column", repr(f"{name} "))


@pytest.mark.parametrize("blank", [None, "", " ", float("nan")])
@pytest.mark.parametrize("name", ["split", "artist", "tags"])
def test_a_blank_column_does_not_hide_the_filled_one_of_its_name(tmp_path, name, blank):
    values = {"split": "test", "artist": "Ana", "tags": ["a"]}
    rows = [{"path": f"{n}.wav", name: blank, name.title(): values[name]} for n in range(3)]
    tracks = rows_of(tmp_path, *rows)
    if name == "split":
        assert [track.split for track in tracks] == ["test"] * 3
    else:
        assert [track.columns for track in tracks] == [{name.title(): values[name]}] * 3


def test_artists_in_a_filled_column_beside_a_blank_one_stay_on_one_side(tmp_path):
    rows = [{"path": f"{n}.wav", "artist": "", "Artist": "abcdef"[n // 4]} for n in range(24)]
    tracks = split_tracks(
        rows_of(tmp_path, *rows),
        group_columns=["artist"],
        validation_fraction=0.2,
        test_fraction=0.2,
        seed=0,
    )
    sides = {
        (track.columns["Artist"], split) for split, members in tracks.items() for track in members
    }
    assert len(sides) == 6


@pytest.mark.parametrize("digits", [1001, 5000])
def test_an_integer_of_too_many_digits_is_refused_by_its_line(tmp_path, digits):
    text = '{"path": "a.wav"}\n{"path": "b.wav", "pitch": %s}\n' % ("9" * digits)
    message = refuses(
        tmp_path / "m.jsonl", text, "manifest-not-json", "m.jsonl:2", f"{digits:,} digits"
    )
    assert "sys." not in message
    write(tmp_path / "dataset.json", '{"name": %s}' % ("9" * digits))
    with raises("dataset-info-invalid", f"{digits:,} digits"):
        read_dataset_info(tmp_path, name="x")


def test_names_that_are_not_utf8_get_a_printable_id(tmp_path):
    (track,) = rows_of(tmp_path, {"path": "caf\udce9.wav"})
    assert track.id == "caf\\udce9.wav"
    assert bytes(track.path).endswith(b"/caf\xe9.wav")


def test_rows_of_a_data_set_of_the_hub_may_share_file_and_id(tmp_path):
    rows = [(n, {"path": "a.wav", "id": "x"}) for n in (1, 2)] + [
        (3, {"path": "b.wav", "id": "x#2"})
    ]
    tracks = tracks_from_rows(rows, folder=tmp_path, name="me/songs", path_rule="foreign")
    assert [track.id for track in tracks] == ["x", "x#2", "x#2#3"]
    assert tracks[0].path == tracks[1].path
    for rule in ("own", "any"):
        with raises("manifest-duplicate-path", "'a.wav'", "me/songs:1"):
            tracks_from_rows(rows, folder=tmp_path, name="me/songs", path_rule=rule)


paths = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="/")),
    min_size=1,
    unique=True,
).map(lambda names: [f"{number}/{name}.mp3" for number, name in enumerate(names)])


@settings(max_examples=50, deadline=None)
@given(paths=paths, tag=st.text(st.characters(codec="utf-8", exclude_categories=("Cs",))))
def test_any_jsonl_comes_back(tmp_path_factory, paths, tag):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write(path, "".join(json.dumps({"path": p, "tags": [tag]}) + "\n" for p in paths))
    tracks = read_manifest(path)
    assert [track.id for track in tracks] == paths
    assert all(track.columns == {"tags": [tag]} for track in tracks)


# -- bad lines ------------------------------------------------------------------------------------


def test_a_missing_manifest_is_named(tmp_path):
    path = tmp_path / "none.csv"
    with raises("manifest-not-found", path, ".jsonl"):
        read_manifest(path)


def test_another_kind_of_file_is_refused(tmp_path):
    refuses(tmp_path / "songs.xlsx", "x", "manifest-unknown-format", "songs.xlsx", ".csv", ".jsonl")


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_manifest_is_refused(tmp_path, name, content):
    refuses(tmp_path / name, content, "manifest-empty", name)


@pytest.mark.parametrize("end", [",", ",,", ", ,"])
@pytest.mark.parametrize("cell", ["", "x"])
def test_columns_without_a_name_are_left_out(tmp_path, end, cell):
    text = f"path,tags{end}\na.mp3,rock{end}{cell}\nb.mp3,pop{end}\n"
    tracks = read_manifest(write(tmp_path / "m.csv", text))
    assert [track.columns for track in tracks] == [{"tags": "rock"}, {"tags": "pop"}]
    refused = f"path,tags{end}\na.mp3,rock\n"
    refuses(tmp_path / "m.csv", refused, "manifest-cell-count", "m.csv:2", "no name")


def test_the_index_of_a_table_of_pandas_is_left_out(tmp_path):
    text = ",path,tags\n0,a.mp3,rock\n"
    (track,) = read_manifest(write(tmp_path / "m.csv", text))
    assert track.columns == {"tags": "rock"}


def test_a_name_may_start_with_a_space(tmp_path):
    (track,) = read_manifest(write(tmp_path / "m.csv", "path,tags\n a.mp3,rock\n"))
    assert track.path == tmp_path / " a.mp3"


@pytest.mark.parametrize("cell", ['"rock, hard"', ' "rock, hard"', '   "rock, hard"'])
def test_quotes_after_a_space_are_quotes(tmp_path, cell):
    (track,) = read_manifest(write(tmp_path / "m.csv", f"path, tags\na.mp3,{cell}\n"))
    assert as_labels(track, "tags") == ["rock, hard"]


def test_a_csv_with_a_header_only_is_refused(tmp_path):
    refuses(tmp_path / "m.csv", "path,tags\n", "manifest-empty", "m.csv")


def test_a_track_in_two_splits_is_refused(tmp_path):
    text = "path,split\na.mp3,train\nb.mp3,test\n./a.mp3,test\n"
    values = ("m.csv:4", "'./a.mp3'", "test here", "train at m.csv:2")
    refuses(tmp_path / "m.csv", text, "manifest-two-splits", *values)


def test_a_duplicate_path_is_refused(tmp_path):
    text = "path,split\na.mp3,train\nx/../a.mp3,train\n"
    values = ("m.csv:3:", "'x/../a.mp3'", "at m.csv:2")
    refuses(tmp_path / "m.csv", text, "manifest-duplicate-path", *values)


def test_a_duplicate_id_is_refused(tmp_path):
    text = "path,id\na.mp3,7\nb.mp3,7\n"
    refuses(tmp_path / "m.csv", text, "manifest-duplicate-id", "m.csv:3:", "'7'", "at m.csv:2")


def test_an_unknown_split_is_refused(tmp_path):
    text = "path,split\na.mp3,train\nb.mp3,tset\n"
    values = ("m.csv:3", "'tset'", "train, validation, test")
    refuses(tmp_path / "m.csv", text, "manifest-unknown-split", *values)


def test_a_split_for_some_tracks_only_is_refused(tmp_path):
    text = "path,split\na.mp3,train\nb.mp3,\n"
    refuses(tmp_path / "m.csv", text, "manifest-partial-split", "1 of 2", "m.csv:3")


def test_a_manifest_without_paths_is_refused(tmp_path):
    values = ("m.csv:1:", "song, tags", "'path'", "'file_name'")
    refuses(tmp_path / "m.csv", "song,tags\na.mp3,rock\n", "manifest-no-path-column", *values)


def test_all_bad_lines_are_listed_at_once(tmp_path):
    rows = ["a.mp3,train", ",train", "b.mp3,tset", "a.mp3,test", "c.mp3,test", "c.mp3,test"]
    text = "\n".join(["path,split", *rows])
    message = refuses(tmp_path / "m.csv", text, "manifest-bad-lines", "(4)")
    assert [f"m.csv:{line}:" in message for line in range(2, 8)] == [
        False, True, True, True, False, True,
    ]  # fmt: skip


def test_very_many_problems_are_counted():
    message = problem_list("Bad", [f"line {n}" for n in range(60)], "Correct them.")
    assert "Bad (60):" in message
    assert "line 49\n" in message
    assert "line 50" not in message
    assert " 10 " in message


@pytest.mark.parametrize("line", ["a.mp3", "a.mp3,rock,more"])
def test_a_csv_line_with_other_cells_than_the_header_is_refused(tmp_path, line):
    text = f"path,tags\nb.mp3,pop\n{line}\n"
    refuses(tmp_path / "m.csv", text, "manifest-cell-count", "m.csv:3", "path, tags")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['a.mp3,"rock', *["b.mp3,pop"] * 20_000], 2),
        (["a.mp3,rock", 'b.mp3,"pop', "c.mp3,rock", "d.mp3,pop"], 3),
        (['a.mp3,"rock', "b.mp3,pop", 'c.mp3,"jazz', "d.mp3,pop"], 2),
        (["a.mp3,rock", 'b.mp3,"rock" x'], 3),
        (["a.mp3,rock", 'b.mp3,"a \\"b\\" c"'], 3),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_an_open_quote_is_refused(tmp_path, rows, line, ending):
    text = ending.join(["path,tags", *rows]) + ending
    refuses(tmp_path / "m.csv", text.encode(), "manifest-not-csv", f"m.csv:{line}:")


@pytest.mark.parametrize("header", ['path,"tags', 'path,"tags" x', 'path,"tags\na.mp3,b"'])
def test_an_open_quote_in_the_header_is_refused(tmp_path, header):
    refuses(tmp_path / "m.csv", f"{header}\na.mp3,pop\n", "manifest-not-csv", "m.csv:1:")


def test_a_label_with_a_line_break_is_refused(tmp_path):
    """Two open quotes may hide a row between them and leave a CSV that is one."""
    text = 'path,genre\na.mp3,"rock\nb.mp3,pop\nc.mp3,"\nd.mp3,pop\n'
    for name in "abcd":
        (tmp_path / f"{name}.mp3").touch()
    (tmp_path / "m.csv").write_text(text)
    tracks, _ = load_tracks(str(tmp_path / "m.csv"), label_column="genre")
    task = Genre(labels=("pop",), label_column="genre")
    [problem] = [one for one in task.label_problems(tracks) if one]
    assert "rock\\nb.mp3" in problem[0]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_text_that_is_not_utf8_is_refused(tmp_path, name, encoding):
    text = "path,tags\né.mp3,a\n" if name == "m.csv" else '{"path": "é.mp3"}\n'
    refuses(tmp_path / name, text.encode(encoding), "manifest-not-utf8", name)


@pytest.mark.parametrize(
    "line", ['{"path": "b.mp3"', "b.mp3", '{"path": "b.mp3"} x', "{'path': 1}"]
)
def test_a_line_that_is_not_json_is_refused(tmp_path, line):
    text = f'{{"path": "a.mp3"}}\n{line}\n'
    refuses(tmp_path / "m.jsonl", text, "manifest-not-json", "m.jsonl:2")


@pytest.mark.parametrize("line", ['["b.mp3"]', '"b.mp3"', "3", "null"])
def test_a_line_that_is_no_object_is_refused(tmp_path, line):
    text = f'{{"path": "a.mp3"}}\n{line}\n'
    refuses(tmp_path / "m.jsonl", text, "manifest-not-object", "m.jsonl:2")


def test_no_rows_are_refused(tmp_path):
    with raises("manifest-empty", "me/empty"):
        tracks_from_rows([], folder=tmp_path, name="me/empty")


# -- dataset.json and cells -----------------------------------------------------------------------


def test_dataset_info(tmp_path):
    assert read_dataset_info(tmp_path, name="mine") == DatasetInfo(name="mine")
    write(tmp_path / "dataset.json", '{"name": "songs", "licence": "CC0-1.0"}')
    assert read_dataset_info(tmp_path, name="x") == DatasetInfo(name="songs", licence="CC0-1.0")


def test_a_null_in_a_dataset_info_is_as_if_absent(tmp_path):
    write(tmp_path / "dataset.json", '{"name": "x", "licence": null}')
    assert read_dataset_info(tmp_path, name="y") == DatasetInfo(name="x")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        '{"name": "x", "license": "y"}',
        "{}",
        '{"name": 0}',
        '{"name": "x", "licence": false}',
        '{"name": "x", "citation": ["a"]}',
    ],
)
def test_a_bad_dataset_info_is_refused(tmp_path, content):
    write(tmp_path / "dataset.json", content)
    with raises("dataset-info-invalid", tmp_path / "dataset.json", "name, title, licence"):
        read_dataset_info(tmp_path, name="x")


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (None, []),
        ("", []),
        ("rock", ["rock"]),
        (" rock ; hip hop;; ", ["rock", "hip hop"]),
        (["rock; not split", " pop "], ["rock; not split", "pop"]),
        (float("nan"), []),
        (["rock", None, float("nan"), " "], ["rock"]),
        (0, ["0"]),
        (False, ["false"]),
        (["1980", 1980, 1980.0, True], ["1980", "1980", "1980", "true"]),
        (0.5, ["0.5"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("caf\udce9", ["caf\\udce9"]),
    ],
)
def test_labels_of_a_cell(cell, labels):
    assert as_labels(track_with(cell), "tags") == labels


@pytest.mark.parametrize(
    ("cell", "nested"),
    [({"rock": 1}, {"rock": 1}), ([["rock"]], ["rock"]), (["rock", {"pop": 0}], {"pop": 0})],
)
def test_what_is_nested_is_no_label(cell, nested):
    with fails(ValueError, "tags", nested):
        as_labels(track_with(cell), "tags")


def track_with(cell):
    return Track(
        id="a",
        path=Path("a.wav"),
        split=None,
        columns={"tags": cell},
        origin="songs.jsonl:3",
        folder=Path(),
    )


def test_headers_that_cannot_be_meant_are_refused(tmp_path):
    text = "path,tags,tags\na.wav,x,y\n"
    refuses(tmp_path / "twice.csv", text, "manifest-duplicate-column", "twice.csv:1:", "tags")
    text = "path;tags\na.wav;x\n"
    refuses(tmp_path / "other.csv", text, "manifest-no-path-column", "other.csv:1:", "path;tags")


def test_spaces_in_a_header_and_a_suffix_in_capitals_do_no_harm(tmp_path):
    write(tmp_path / "S.CSV", "path, tags\na.wav,rock\n")
    [track] = read_manifest(tmp_path / "S.CSV")
    assert track.columns == {"tags": "rock"}


def test_a_key_named_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "songs.jsonl"
    path.write_text('{"path": "a.wav"}\n{"path": "b.wav", "key": "C major", "key": "D major"}\n')
    with raises("manifest-not-json", "songs.jsonl:2: ", "names key"):
        read_manifest(path)
