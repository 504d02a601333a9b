"""The scripts that compose music beside the quickstart: without labels by the hour, and labelled."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.exhaustive


QUICKSTART_PROGRAMS_OF_ANOTHER_STYLE = {
    8,
    9,
    10,
    14,
    15,
    46,
    104,
    105,
    106,
    107,
    108,
    112,
    114,
    115,
}


@pytest.fixture(scope="module")
def scripts(repository: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "scripts"))
        yield


def run(name: str, *options: object) -> ModuleType:
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, options)])
        module.main()
    return module


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def music(scripts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    run("compose_pretraining_music", folder, "--hours", 1, "--scores-only")
    return folder


def test_fewer_hours_give_the_same_first_files(music: Path, tmp_path: Path) -> None:
    run("compose_pretraining_music", tmp_path, "--hours", 0.25, "--scores-only")
    some = rows_of(tmp_path)
    assert 15 <= len(some) < len(rows_of(music))
    assert some == rows_of(music)[: len(some)]
    scores = contents(music / "midi")
    assert all(scores[name] == content for name, content in contents(tmp_path / "midi").items())


def test_another_seed_gives_other_music(music: Path, tmp_path: Path) -> None:
    run("compose_pretraining_music", tmp_path, "--hours", 0.1, "--seed", 2, "--scores-only")
    assert not set(contents(tmp_path / "midi").values()) & set(contents(music / "midi").values())


def test_an_hour_has_seven_pieces_two_of_notes_and_one_voice_in_ten_in_all_styles(
    music: Path,
) -> None:
    rows = rows_of(music)
    kinds = [row["kind"] for row in rows]
    assert kinds[:20].count("piece") == 14
    assert kinds[:20].count("notes") == 4
    assert len({row["style"] for row in rows if "style" in row}) == 6
    assert len({row["key"] for row in rows if "key" in row}) >= 20
    assert 3600 <= sum(row["seconds"] for row in rows) < 3660
    programs = {p for row in rows if row["kind"] == "piece" for p in row["programs"].values()}
    pitched = {
        program
        for row in rows
        if row["kind"] == "piece"
        for role, program in row["programs"].items()
        if role != "drums"
    }
    assert len(programs) > 50
    assert not pitched & QUICKSTART_PROGRAMS_OF_ANOTHER_STYLE


def test_the_other_style_has_instruments_of_its_own(scripts: None, tmp_path: Path) -> None:
    run(
        "compose_pretraining_music",
        *(tmp_path, "--hours", 0.2, "--style", "music box", "--scores-only"),
    )
    rows = rows_of(tmp_path)
    assert {row["style"] for row in rows} == {"music box"}
    for row in rows:
        pitched = {program for role, program in row["programs"].items() if role != "drums"}
        assert pitched <= QUICKSTART_PROGRAMS_OF_ANOTHER_STYLE


def test_a_piece_that_starts_like_one_of_the_quickstart_is_refused(
    scripts: None, tmp_path: Path
) -> None:
    module = importlib.import_module("compose_pretraining_music")
    writer = module.Writer(tmp_path, seed=1, style=None, soundfont=Path("none"), fluidsynth="none")
    writer.write(0, with_audio=False)
    piece = importlib.import_module("compose_quickstart").compose_all(1)[0][0]
    assert module.opening(piece) in writer.forbidden
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compose_piece", lambda *_: piece)
        with pytest.raises(AssertionError, match="quickstart"):
            writer.write(0, with_audio=False)


def test_labelled_music_has_the_columns_of_the_quickstart(scripts: None, tmp_path: Path) -> None:
    options = ("--pieces", 24, 6, 6, "--notes-per-family", 37, 2, 2, "--annotations-only")
    run("compose_labelled_music", tmp_path / "a", *options)
    run("compose_labelled_music", tmp_path / "b", *options)
    rows = rows_of(tmp_path / "a")
    assert rows == rows_of(tmp_path / "b")
    assert contents(tmp_path / "a" / "annotations") == contents(tmp_path / "b" / "annotations")
    assert [row["split"] for row in rows].count("train") == 24
    assert len({row["key"] for row in rows if row["split"] == "train"}) == 24
    assert all((tmp_path / "a" / row["beats"]).is_file() for row in rows)
    notes = rows_of(tmp_path / "a" / "notes")
    assert len(notes) == 8 * (37 + 2 + 2)
    assert len({row["pitch"] for row in notes if row["split"] == "train"}) == 37


def test_the_seed_of_the_quickstart_is_refused(
    scripts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("compose_labelled_music", tmp_path, "--seed", 1, "--annotations-only")
    assert ended.value.code == 2
    assert "seed 1 " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
