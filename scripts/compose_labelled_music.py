"""Composes and renders labelled music that neither ships nor is part of the pretraining music.

    python scripts/compose_labelled_music.py OUT

writes OUT/manifest.jsonl, clips of 8 s with the annotations that the quickstart's clips have, and
OUT/notes/manifest.jsonl, single notes of 1 s; 16 kHz, mono, FLAC. Everything is played by another sound
font than the pretraining music: what benchmarks/small_backbone.py measures on. `--style "music box"`
composes the clips in that style.

Needs FluidSynth 2.3 or newer and one sound font, in Debian and Ubuntu

    apt-get install fluidsynth musescore-general-soundfont-lossless

where the font is not compressed: the compressed one takes three seconds a clip to load. The same seed
gives the same manifests and annotations to the byte. Seed 1 is the quickstart's; the script stops where
a piece is one of the quickstart's.
"""

import argparse
import json
import shutil
from itertools import groupby
from pathlib import Path

from compose_quickstart import SEED as QUICKSTART_SEED
from compose_quickstart import compose_all, manifest_lines
from composer.annotate import annotation_files, manifest_row
from composer.arrange import Piece, compose, plan_split
from composer.midi import encode_midi
from composer.notes import NotePlan, note_row, plan_notes, render_notes
from composer.render import render_roles, sum_roles, write_flac
from composer.styles import FAMILIES, OTHER_FAMILIES, OTHER_STYLES, STYLES

SPLITS = ("train", "validation", "test")
NUM_PIECES = (480, 96, 192)
NUM_NOTES_PER_FAMILY = (111, 14, 37)
OUTPUT_RATE_HZ = 16_000
RENDER_RATE_HZ = 32_000


def compose_pieces(counts: dict[str, int], *, seed: int, style: str | None) -> list[Piece]:
    """Compose the pieces of all splits; stop where one is a quickstart piece."""
    styles = STYLES if style is None else {style: OTHER_STYLES[style]}
    family_programs = FAMILIES if style is None else OTHER_FAMILIES
    pieces = [
        compose(plan, seed)
        for split, count in counts.items()
        for plan in plan_split(split, count, seed, styles=styles, family_programs=family_programs)
    ]
    scores = [encode_midi(piece.score) for piece in pieces]
    shipped = {encode_midi(piece.score) for piece in compose_all(QUICKSTART_SEED)[0]}
    assert len({*scores} | shipped) == len(scores) + len(shipped), "two pieces are the same"
    return pieces


def write_set(folder: Path, rows: list[dict[str, object]], *, name: str, title: str) -> None:
    """Write `manifest.jsonl` and `dataset.json`, with all audio as FLAC."""
    for row in rows:
        row["path"] = f"audio/{row['id']}.flac"
    (folder / "manifest.jsonl").write_text(manifest_lines(rows), encoding="utf-8")
    info = {
        "name": name,
        "title": title,
        "licence": "CC0-1.0 AND MIT",
        "citation": "",
        "homepage": "",
    }
    (folder / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def write_clips(
    folder: Path, pieces: list[Piece], soundfont: Path, fluidsynth: str, *, with_audio: bool
) -> None:
    """Write annotations and audio; audio that is there is kept."""
    for name in ("annotations", "audio"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for done, piece in enumerate(pieces, start=1):
        for name, content in annotation_files(piece).items():
            (folder / "annotations" / name).write_bytes(content)
        rows.append(manifest_row(piece, soundfont.stem, has_stems=False))
        path = folder / "audio" / f"{piece.plan.identifier}.flac"
        if with_audio and not path.is_file():
            stems = render_roles(piece, soundfont, fluidsynth, rate_hz=RENDER_RATE_HZ)
            write_flac(path, sum_roles(stems), rate_hz=OUTPUT_RATE_HZ)
            print(f"\r{done} of {len(pieces)} clips", end="", flush=True)
    write_set(folder, rows, name="labelled-clips", title="Composed clips with exact labels")


def write_notes(
    folder: Path, plans: list[NotePlan], soundfont: Path, fluidsynth: str, *, with_audio: bool
) -> None:
    """Write single notes, one family of one split at a time; audio that is there is kept."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for _, group in groupby(plans, key=lambda plan: (plan.split, plan.instrument)):
        family = list(group)
        paths = {plan.identifier: folder / "audio" / f"{plan.identifier}.flac" for plan in family}
        if with_audio and not all(path.is_file() for path in paths.values()):
            for name, samples in render_notes(family, soundfont, fluidsynth).items():
                write_flac(paths[name], samples, rate_hz=OUTPUT_RATE_HZ)
    rows = [note_row(plan, soundfont.stem) for plan in plans]
    write_set(folder, rows, name="labelled-notes", title="Single notes")


def main() -> None:
    """Compose, annotate and render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the folder")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--style", choices=tuple(OTHER_STYLES), help="clips of that style alone")
    for option, default, what in (
        ("--pieces", NUM_PIECES, "clips"),
        ("--notes-per-family", NUM_NOTES_PER_FAMILY, "notes of each family of instruments"),
    ):
        parser.add_argument(
            option,
            type=int,
            nargs=3,
            default=default,
            metavar=("TRAIN", "VALIDATION", "TEST"),
            help=f"{what} of each split (default: %(default)s)",
        )
    parser.add_argument(
        "--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/MuseScore_General_Full.sf2")
    )
    parser.add_argument("--fluidsynth", default="fluidsynth", help="the program")
    parser.add_argument("--annotations-only", action="store_true", help="write no audio")
    arguments = parser.parse_args()
    with_audio = not arguments.annotations_only
    if arguments.seed == QUICKSTART_SEED:
        parser.error(f"seed {QUICKSTART_SEED} is the quickstart's; choose another")
    if with_audio and not arguments.soundfont.is_file():
        parser.error(
            f"there is no sound font at {arguments.soundfont}; install one or name another"
        )
    if with_audio and shutil.which(arguments.fluidsynth) is None:
        parser.error(f"there is no program {arguments.fluidsynth!r}; install FluidSynth")
    player = (arguments.soundfont, arguments.fluidsynth)
    pieces = compose_pieces(
        dict(zip(SPLITS, arguments.pieces, strict=True)),
        seed=arguments.seed,
        style=arguments.style,
    )
    write_clips(arguments.output, pieces, *player, with_audio=with_audio)
    notes = plan_notes(arguments.seed, dict(zip(SPLITS, arguments.notes_per_family, strict=True)))
    write_notes(arguments.output / "notes", notes, *player, with_audio=with_audio)
    print(f"\n{arguments.output}: {len(pieces)} clips, {len(notes)} notes")


if __name__ == "__main__":
    main()
