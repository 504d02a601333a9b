"""Composes and renders music without labels, hours of it, for the objective of music2vec.

    python scripts/compose_pretraining_music.py OUT --hours 8 --seed 1

writes OUT/manifest.jsonl, OUT/audio (FLAC, 16 kHz, mono, 30 to 60 s a file) and OUT/midi. Of ten files
seven are pieces in the quickstart's styles, two are single notes and chords of single instruments, and
one is singing without an accompaniment. `--style "music box"` writes only pieces of that style, with
instruments that no other piece has: the music to adapt a backbone to.

Needs FluidSynth 2.3 or newer and one sound font, in Debian and Ubuntu

    apt-get install fluidsynth fluid-soundfont-gm

and plays about 40 times faster than real time on one core. The same seed gives the same scores to the
byte, file by file, whatever --hours is: more hours add files, and files that are there are kept. No
piece is one of the quickstart's, nor begins like one; the script stops if it were.
"""

import argparse
import json
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from compose_quickstart import SEED as QUICKSTART_SEED
from compose_quickstart import compose_all, manifest_lines
from composer import theory
from composer.arrange import Piece, compose, plan_piece
from composer.midi import DRUM_CHANNEL, TICKS_PER_QUARTER, Note, Score, Track, encode_midi
from composer.render import (
    ROLE_LEVELS_DB,
    SAMPLE_RATE_HZ,
    decibel_gain,
    render_roles,
    render_score,
    rms,
    sum_roles,
    write_flac,
)
from composer.styles import ALL_STYLES, OTHER_FAMILIES, OTHER_STYLES, STYLES
from composer.voice import TECHNIQUES, VOICE_SECONDS, VOWELS, Singer, sing

OUTPUT_RATE_HZ = 16_000
# What FluidSynth plays at: twice the output's rate is enough, and quicker than more.
RENDER_RATE_HZ = 32_000
SHORTEST_SECONDS, LONGEST_SECONDS = 30.0, 60.0
KINDS = ("piece", "piece", "notes", "piece", "piece", "voice", "piece", "notes", "piece", "piece")
# All General MIDI programs (0 to 127) of the families but those of `OTHER_FAMILIES`.
PROGRAMS = {
    "piano": (0, 1, 2, 3, 6),
    "electric piano": (4, 5, 7),
    "mallets": (11, 12, 13),
    "organ": (16, 17, 18, 19, 20, 21, 22, 23),
    "guitar": (24, 25, 26, 27, 28, 29, 30, 31),
    "strings": (40, 41, 42, 44, 45, 48, 49, 50, 51, 52),
    "brass": (56, 57, 58, 59, 60, 61, 62, 63),
    "saxophone": (64, 65, 66, 67, 68, 69, 70, 71),
    "flute": (72, 73, 74, 75, 76, 77, 78, 79),
    "synthesizer": (80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 93, 95),
    "double bass": (32, 35, 43),
    "electric bass": (33, 34, 36, 37),
    "synth bass": (38, 39),
    **OTHER_FAMILIES,
}
# Root mean square levels, in dB of full scale.
_LOUDNESS_DBFS = (-32.0, -20.0)
_QUARTER_MICROSECONDS = 500_000
_TICKS_PER_SECOND = TICKS_PER_QUARTER * 1_000_000 // _QUARTER_MICROSECONDS
_NUM_NOTE_PROGRAMS = 6
# So long an instrument may ring after a file's last release.
_RELEASE_SECONDS = 1.0


def compose_piece(
    random: Random, identifier: str, styles: tuple[str, ...], seconds: float
) -> Piece:
    """A piece in one of the styles, its melody and chords in any octave that they can be played in."""
    style, key = random.choice(styles), random.choice(theory.KEYS)
    plan = plan_piece(
        random,
        identifier=identifier,
        title=f"{style.capitalize()} in {key}, {identifier}",
        style=style,
        metre=random.choice(ALL_STYLES[style].metres),
        key=key,
        used=Counter(),
        family_programs=PROGRAMS,
    )
    piece = compose(plan, random.getrandbits(32), seconds)
    octaves = {"chords": random.choice((-1, 0, 0, 1)), "melody": random.choice((-1, 0, 0, 1))}
    tracks = tuple(
        replace(
            track,
            notes=tuple(
                replace(note, pitch=note.pitch + 12 * octaves.get(track.name, 0))
                for note in track.notes
            ),
        )
        for track in piece.score.tracks
    )
    return replace(piece, score=replace(piece.score, tracks=tracks))


def compose_notes(random: Random, seconds: float) -> Score:
    """Notes and now and then chords, one after the other, each by one of a few instruments."""
    families = [family for family in PROGRAMS if family not in OTHER_FAMILIES]
    chosen = random.sample(families, _NUM_NOTE_PROGRAMS)
    notes: list[list[Note]] = [[] for _ in chosen]
    now_seconds = 0.0
    while now_seconds < seconds - _RELEASE_SECONDS:
        held_seconds = 0.2 * 10 ** random.random()
        start = round(now_seconds * _TICKS_PER_SECOND)
        end = start + round(held_seconds * _TICKS_PER_SECOND)
        lowest, velocity = random.randrange(33, 85), random.randrange(50, 128)
        intervals = random.choice(((0,), (0,), (0,), (0, 4, 7), (0, 3, 7), (0, 12), (0, 7)))
        random.choice(notes).extend(
            Note(start=start, end=end, pitch=lowest + interval, velocity=velocity)
            for interval in intervals
        )
        now_seconds += held_seconds + random.choice((0.0, 0.1, 0.4))
    tracks = tuple(
        Track(
            name=family,
            channel=channel,
            program=random.choice(PROGRAMS[family]),
            notes=tuple(played),
        )
        for channel, (family, played) in enumerate(zip(chosen, notes, strict=True))
    )
    return Score(quarter_microseconds=_QUARTER_MICROSECONDS, metre="4/4", tracks=tracks)


def sing_phrases(random: Random, seconds: float) -> np.ndarray:
    """One singer, drawn anew, sings phrase after phrase with any technique, (samples,)."""
    low = random.randrange(38, 62)
    singer = Singer(
        tract_cm=random.uniform(13.5, 19.0),
        low=low,
        high=low + 17,
        tilt_db=random.uniform(-9.0, -5.0),
        breath_db=random.uniform(-48.0, -34.0),
        vibrato_hz=random.uniform(4.8, 6.5),
    )
    phrases = []
    for _ in range(round(seconds / VOICE_SECONDS)):
        technique = random.choice(list(TECHNIQUES.values()))
        phrases.append(sing(random, singer, technique, random.choice(list(VOWELS))))
    return np.concatenate(phrases)


def opening(piece: Piece) -> tuple[Any, ...]:
    """What two pieces that begin alike share: key, metre, tempo, and the first two bars' pitches."""
    bars = 2 * 4 * TICKS_PER_QUARTER
    pitches = tuple(
        (track.name, tuple(note.pitch % 12 for note in track.notes if note.start < bars))
        for track in piece.score.tracks
        if track.channel != DRUM_CHANNEL
    )
    plan = piece.plan
    return plan.key, plan.metre, plan.quarter_microseconds, pitches


class Writer:
    """Writes the files of a folder, one by its number."""

    def __init__(
        self, folder: Path, *, seed: int, style: str | None, soundfont: Path, fluidsynth: str
    ) -> None:
        """Compose the quickstart, whose pieces are not to be met again."""
        self.folder, self.seed, self.style = folder, seed, style
        self.soundfont, self.fluidsynth = soundfont, fluidsynth
        pieces, _ = compose_all(QUICKSTART_SEED)
        self.forbidden = {opening(piece) for piece in pieces}
        self.forbidden_scores = {encode_midi(piece.score) for piece in pieces}
        for name in ("audio", "midi"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def write(self, index: int, *, with_audio: bool) -> dict[str, Any]:
        """Write a file unless it is there, and return its line of the manifest."""
        name = f"{(self.style or 'music').replace(' ', '-')}-{self.seed}-{index:05d}"
        # Its own name in the seed: the quickstart's are "<seed>/<split>...".
        random = Random(f"{self.seed}/pretraining/{self.style}/{index}")
        kind = "piece" if self.style else KINDS[index % len(KINDS)]
        seconds = round(random.uniform(SHORTEST_SECONDS, LONGEST_SECONDS), 1)
        level_dbfs = random.uniform(*_LOUDNESS_DBFS)
        row: dict[str, Any] = {"id": name, "path": f"audio/{name}.flac", "kind": kind}
        path = self.folder / row["path"]
        is_needed = with_audio and not path.is_file()
        samples = None
        if kind == "piece":
            styles = (self.style,) if self.style else tuple(STYLES)
            piece = compose_piece(random, name, styles, seconds)
            assert opening(piece) not in self.forbidden, f"{name} begins like a quickstart piece"
            midi = encode_midi(piece.score)
            assert midi not in self.forbidden_scores, f"{name} is a quickstart piece"
            (self.folder / "midi" / f"{name}.mid").write_bytes(midi)
            plan = piece.plan
            row |= {"style": plan.style, "key": plan.key, "metre": plan.metre}
            row |= {"tempo_bpm": round(plan.tempo_bpm, 2), "programs": plan.programs}
            levels_db = {
                role: level + random.uniform(-5.0, 5.0) for role, level in ROLE_LEVELS_DB.items()
            }
            if is_needed:
                stems = render_roles(
                    piece,
                    self.soundfont,
                    self.fluidsynth,
                    seconds=seconds,
                    role_levels_db=levels_db,
                    rate_hz=RENDER_RATE_HZ,
                )
                samples = sum_roles(stems)
        elif kind == "notes":
            score = compose_notes(random, seconds)
            (self.folder / "midi" / f"{name}.mid").write_bytes(encode_midi(score))
            row["programs"] = [track.program for track in score.tracks]
            if is_needed:
                samples = render_score(
                    score, self.soundfont, self.fluidsynth, rate_hz=RENDER_RATE_HZ
                )
                samples = samples[: round(seconds * SAMPLE_RATE_HZ)]
                samples = samples * decibel_gain(level_dbfs) / rms(samples)
        elif is_needed:
            samples = sing_phrases(random, seconds)
        if samples is not None:
            write_flac(path, samples, rate_hz=OUTPUT_RATE_HZ)
        return row | {"seconds": seconds}


def main() -> None:
    """Compose and render file after file until there are hours enough."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the folder")
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--style", choices=tuple(OTHER_STYLES), help="pieces of that style alone")
    parser.add_argument(
        "--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
    )
    parser.add_argument("--fluidsynth", default="fluidsynth", help="the program")
    parser.add_argument("--scores-only", action="store_true", help="write no audio")
    arguments = parser.parse_args()
    if not arguments.scores_only:
        if not arguments.soundfont.is_file():
            parser.error(
                f"there is no sound font at {arguments.soundfont}; install one or name another"
            )
        if shutil.which(arguments.fluidsynth) is None:
            parser.error(f"there is no program {arguments.fluidsynth!r}; install FluidSynth")
    start_time = time.monotonic()
    writer = Writer(
        arguments.output,
        seed=arguments.seed,
        style=arguments.style,
        soundfont=arguments.soundfont,
        fluidsynth=arguments.fluidsynth,
    )
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    while seconds < 3600 * arguments.hours:
        rows.append(writer.write(len(rows), with_audio=not arguments.scores_only))
        seconds += rows[-1]["seconds"]
        print(f"\r{len(rows)} files, {seconds / 3600:.2f} hours", end="", flush=True)
    (arguments.output / "manifest.jsonl").write_text(manifest_lines(rows), encoding="utf-8")
    dataset = {
        "name": "m2v-pretraining-music",
        "title": f"{arguments.hours:g} h of music composed and rendered by this project with "
        f"{arguments.soundfont.stem}",
        "licence": "apache-2.0; the sound font's is MIT",
    }
    (arguments.output / "dataset.json").write_text(
        json.dumps(dataset, indent=2) + "\n", encoding="utf-8"
    )
    info = {
        "command": f"--hours {arguments.hours:g} --seed {arguments.seed}"
        + (f" --style {arguments.style!r}" if arguments.style else ""),
        "soundfont": arguments.soundfont.stem,
        "hours": round(seconds / 3600, 3),
        "seconds_to_write": round(time.monotonic() - start_time, 1),
    }
    (arguments.output / "about.json").write_text(
        json.dumps(info, indent=2) + "\n", encoding="utf-8"
    )
    print(f"\n{arguments.output}: {time.monotonic() - start_time:.0f} s")


if __name__ == "__main__":
    main()
