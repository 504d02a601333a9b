"""Composes and renders the quickstart data that ships in `m2v_finetune/data/quickstart`.

    python scripts/compose_quickstart.py

rebuilds the folder, the clips with their stems, the single notes and the voices, in five to ten
minutes on two cores. It needs FluidSynth 2.3 or newer and the two
sound fonts, in Debian and Ubuntu

    apt-get install fluidsynth fluid-soundfont-gm musescore-general-soundfont

and of Python packages only what m2v-finetune itself depends on. The same seed gives the same
manifests and annotations to the byte; the audio is the same music, though other versions of
FluidSynth or of the encoders may give other bytes. Audio files that already sound as they should
are left alone. `--annotations-only` writes all but the audio and needs neither FluidSynth nor sound
fonts.

LICENSES.txt and __init__.py of the folder are kept by hand.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from composer.annotate import TAGS, annotation_files, choose_stems, clip_tags, manifest_row
from composer.arrange import Piece, Plan, compose, plan_split
from composer.describe import DATASETS, readme
from composer.notes import NotePlan, note_row, plan_notes, render_notes
from composer.render import render_roles, sum_roles, write_sound
from composer.voice import VoicePlan, plan_voices, synthesise, voice_row

REPOSITORY = Path(__file__).parent.parent
SEED = 1
# Pieces of each split, and how many of them come with stems.
NUM_PIECES = {"train": 160, "validation": 48, "test": 72}
NUM_STEMS = {"train": 18, "validation": 6, "test": 12}
# At least so many clips of a split have a tag, and as many have it not.
FEWEST_PER_TAG = {"train": 8, "validation": 4, "test": 4}


def compose_all(seed: int) -> tuple[list[Piece], frozenset[str]]:
    """All pieces, sorted by identifier, and the identifiers of those that come with stems."""
    pieces: list[Piece] = []
    with_stems: frozenset[str] = frozenset()
    for split, count in NUM_PIECES.items():
        plans = plan_split(split, count, seed)
        check_tags(split, plans)
        with_stems |= choose_stems(plans, NUM_STEMS[split])
        pieces += [compose(plan, seed) for plan in plans]
    return sorted(pieces, key=lambda piece: piece.plan.identifier), with_stems


def check_tags(split: str, plans: list[Plan]) -> None:
    """Stop where a tag is too rare or too common in a split to be learned or measured."""
    for tag in TAGS:
        positives = sum(tag in clip_tags(plan) for plan in plans)
        fewest = FEWEST_PER_TAG[split]
        if not fewest <= positives <= len(plans) - fewest:
            raise SystemExit(
                f"{positives} of {len(plans)} {split} clips have the tag {tag!r}; "
                f"{fewest} must have it and {fewest} must not. Choose another --seed."
            )


def write_annotations(
    output: Path, pieces: list[Piece], with_stems: frozenset[str], soundfonts: dict[str, str]
) -> None:
    """Write the clips' files but the audio, and README.md.

    Args:
        output: The folder.
        pieces: As `compose_all` returns them.
        with_stems: Identifiers of the pieces that come with stems.
        soundfonts: Name of each split's sound font.
    """
    folder = output / "annotations"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows, with_melody, with_sections = [], [], []
    for piece in pieces:
        files = annotation_files(piece)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        name = piece.plan.identifier
        soundfont = soundfonts[name.split("-")[0]]
        row = manifest_row(piece, soundfont, has_stems=name in with_stems)
        rows.append(row)
        if "melody" in piece.plan.programs:
            with_melody.append({**row, "melody": row["notes"]})
        if f"{name}.txt" in files:
            with_sections.append({**row, "sections": f"annotations/{name}.txt"})
    write_manifest(output, "quickstart", rows)
    for name, some in (
        ("stems", [row for row in rows if "stems" in row]),
        ("melody", with_melody),
        ("structure", with_sections),
    ):
        (output / f"{name}.jsonl").write_text(manifest_lines(some), encoding="utf-8")
    (output / "README.md").write_text(readme(rows), encoding="utf-8")


def manifest_lines(rows: list[dict[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_manifest(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write `manifest.jsonl`, and `dataset.json` of the data set of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.jsonl").write_text(manifest_lines(rows), encoding="utf-8")
    info = json.dumps(DATASETS[name], indent=2, ensure_ascii=False)
    (folder / "dataset.json").write_text(info + "\n", encoding="utf-8")


def write_clips(
    output: Path,
    pieces: list[Piece],
    with_stems: frozenset[str],
    render: Callable[[Piece], dict[str, np.ndarray]],
    workers: int,
) -> None:
    """Render and write every clip, and the stems of some."""

    def write_piece(piece: Piece) -> list[Path]:
        name = piece.plan.identifier
        stems = render(piece)
        sounds = {output / "audio" / f"{name}.ogg": sum_roles(stems)}
        if name in with_stems:
            sounds |= {output / "stems" / name / f"{role}.ogg": s for role, s in stems.items()}
        for path, samples in sounds.items():
            write_sound(path, samples)
        return list(sounds)

    written: set[Path] = set()
    with ThreadPoolExecutor(workers) as pool:
        for done, paths in enumerate(pool.map(write_piece, pieces), start=1):
            written.update(paths)
            print(f"\r{done} of {len(pieces)} pieces", end="", flush=True)
    print()
    remove_others((output / "audio", output / "stems"), written)


def write_notes(
    folder: Path, plans: list[NotePlan], soundfonts: dict[str, Path], fluidsynth: str
) -> None:
    """Render and write the single notes, one family of one split at a time."""
    written = set()
    for (split, _), group in groupby(plans, key=lambda plan: (plan.split, plan.instrument)):
        for name, samples in render_notes(list(group), soundfonts[split], fluidsynth).items():
            path = folder / "audio" / f"{name}.opus"
            write_sound(path, samples)
            written.add(path)
    remove_others((folder / "audio",), written)
    print(f"{len(written)} notes")


def write_voices(folder: Path, plans: list[VoicePlan], seed: int) -> None:
    """Sing and write the voices."""
    written = set()
    for plan in plans:
        path = folder / "audio" / f"{plan.identifier}.opus"
        write_sound(path, synthesise(plan, seed))
        written.add(path)
    remove_others((folder / "audio",), written)
    print(f"{len(written)} voices")


def remove_others(folders: Iterable[Path], kept: set[Path]) -> None:
    """Remove what an earlier version of the data left in the folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file() and path not in kept:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def main() -> None:
    """Compose, annotate and render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "m2v_finetune" / "data" / "quickstart"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--train-soundfont",
        type=Path,
        default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"),
        help="renders the train and validation splits (default: %(default)s)",
    )
    parser.add_argument(
        "--test-soundfont",
        type=Path,
        default=Path("/usr/share/sounds/sf3/MuseScore_General.sf3"),
        help="renders the test split (default: %(default)s)",
    )
    parser.add_argument("--fluidsynth", default="fluidsynth", help="the program")
    parser.add_argument("--workers", type=int, default=2, help="pieces rendered at a time")
    parser.add_argument("--annotations-only", action="store_true", help="write no audio")
    arguments = parser.parse_args()
    soundfonts = {
        "train": arguments.train_soundfont,
        "validation": arguments.train_soundfont,
        "test": arguments.test_soundfont,
    }

    def render(piece: Piece) -> dict[str, np.ndarray]:
        split = piece.plan.identifier.split("-")[0]
        return render_roles(piece, soundfonts[split], arguments.fluidsynth)

    if not arguments.annotations_only:
        for soundfont in sorted(set(soundfonts.values())):
            if not soundfont.is_file():
                parser.error(f"there is no sound font at {soundfont}; install it or name another")
        if shutil.which(arguments.fluidsynth) is None:
            parser.error(f"there is no program {arguments.fluidsynth!r}; install FluidSynth")
    pieces, with_stems = compose_all(arguments.seed)
    names = {split: path.stem for split, path in soundfonts.items()}
    notes, voices = plan_notes(arguments.seed), plan_voices(arguments.seed)
    write_annotations(arguments.output, pieces, with_stems, names)
    notes_folder, voices_folder = arguments.output / "notes", arguments.output / "voices"
    note_rows = [note_row(plan, names[plan.split]) for plan in notes]
    write_manifest(notes_folder, "quickstart-notes", note_rows)
    write_manifest(voices_folder, "quickstart-voices", [voice_row(plan) for plan in voices])
    if not arguments.annotations_only:
        write_clips(arguments.output, pieces, with_stems, render, arguments.workers)
        write_notes(notes_folder, notes, soundfonts, arguments.fluidsynth)
        write_voices(voices_folder, voices, arguments.seed)
    files = [path for path in arguments.output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{arguments.output}: {len(files)} files, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
