"""What is known of a piece's clip: its notes, beats, chords, tags and the numbers of its mood."""

from collections.abc import Sequence
from math import log2
from typing import Any

from composer import theory
from composer.arrange import CLIP_SECONDS, TICKS_PER_STEP, Piece, Plan
from composer.midi import (
    DRUM_CHANNEL,
    TICKS_PER_QUARTER,
    Note,
    Score,
    Track,
    encode_midi,
    seconds_of,
)
from composer.styles import FAMILIES, OTHER_FAMILIES, STEPS_PER_BAR, STEPS_PER_BEAT, STYLES

# Beats a minute at which a clip is called slow, or fast.
SLOW_BPM = 80
FAST_BPM = 120

TAGS = (
    *FAMILIES,
    "drums",
    *STYLES,
    "minor",
    "triple metre",
    "slow",
    "fast",
)


def clip_ticks(plan: Plan) -> int:
    """The clip's whole ticks."""
    return int(CLIP_SECONDS * 1_000_000 * TICKS_PER_QUARTER) // plan.quarter_microseconds


def clip_score(piece: Piece) -> Score:
    """The notes of the clip, with tick 0 at its beginning.

    A note that sounds across an end of the clip is cut there; a drum stroke before the clip is not
    part of it.
    """
    length = clip_ticks(piece.plan)
    tracks = []
    for track in piece.score.tracks:
        notes = []
        for note in track.notes:
            start, end = note.start - piece.clip_start, note.end - piece.clip_start
            is_over = start < 0 if track.channel == DRUM_CHANNEL else end <= 0
            if not is_over and start < length:
                start, end = max(start, 0), min(end, length)
                notes.append(Note(start=start, end=end, pitch=note.pitch, velocity=note.velocity))
        notes.sort()
        tracks.append(
            Track(
                name=track.name,
                channel=track.channel,
                program=track.program,
                notes=tuple(notes),
            )
        )
    return Score(
        quarter_microseconds=piece.score.quarter_microseconds,
        metre=piece.score.metre,
        tracks=tuple(tracks),
    )


def clip_beats(piece: Piece) -> list[tuple[float, int]]:
    """Time in seconds and position in the bar (1 is the downbeat) of the clip's beats."""
    plan = piece.plan
    beat_ticks = STEPS_PER_BEAT[plan.metre] * TICKS_PER_STEP
    beats_per_bar = STEPS_PER_BAR[plan.metre] // STEPS_PER_BEAT[plan.metre]
    beats = []
    index = -(-piece.clip_start // beat_ticks)
    while (tick := index * beat_ticks - piece.clip_start) < clip_ticks(plan):
        beats.append((seconds_of(tick, plan.quarter_microseconds), index % beats_per_bar + 1))
        index += 1
    return beats


def clip_chords(piece: Piece) -> list[tuple[float, float, str]]:
    """Start and end in seconds and label of the clip's chords, which cover it without gaps."""
    segments = []
    for span in piece.chords:
        start, end = (
            min(
                max(seconds_of(t - piece.clip_start, piece.plan.quarter_microseconds), 0.0),
                CLIP_SECONDS,
            )
            for t in (span.start, span.end)
        )
        if start < end:
            segments.append((start, end, span.chord.label if span.chord else "N"))
    return segments


def clip_sections(piece: Piece) -> list[tuple[float, float, str]]:
    """Start and end in seconds and label of the clip's sections: ``band``, and ``break`` without chords."""
    sections: list[tuple[float, float, str]] = []
    for start, end, chord in clip_chords(piece):
        label = "break" if chord == "N" else "band"
        if sections and sections[-1][2] == label:
            start = sections.pop()[0]
        sections.append((start, end, label))
    return sections


def clip_tags(plan: Plan) -> list[str]:
    """The tags that hold for the clip, in the order of `TAGS`, then those of other families."""
    _, mode = theory.parse_key(plan.key)
    held = {plan.style, *plan.families.values()}
    if "drums" in plan.programs:
        held.add("drums")
    if mode == "minor":
        held.add("minor")
    if plan.metre == "3/4":
        held.add("triple metre")
    if round(plan.tempo_bpm, 2) <= SLOW_BPM:
        held.add("slow")
    if round(plan.tempo_bpm, 2) >= FAST_BPM:
        held.add("fast")
    return [tag for tag in (*TAGS, *OTHER_FAMILIES) if tag in held]


def clip_mood(piece: Piece) -> tuple[float, float]:
    """Valence and arousal, each in [-1, 1], by definition from what was composed.

    With each term cut to [-1, 1]:

    - arousal = (tempo + density + loudness) / 3, where tempo is -1 at 60 and 1 at 180 beats a
      minute on a logarithmic scale, density is -1 at 0 and 1 at 20 note onsets a second, and
      loudness is -1 at -32 and 1 at -20 dB of full scale (root mean square);
    - valence = mode / 2 + chords / 4 + register / 4, where mode is 1 in major and -1 in minor,
      chords is the difference between the time under major and under minor triads divided by
      their sum, and register is the mean MIDI pitch of the notes, drums left out, less 57, in
      octaves.

    They follow the direction in which listeners' ratings are known to move with these features,
    and are no ratings.
    """
    plan = piece.plan
    score = clip_score(piece)
    onsets = sum(note.start > 0 for track in score.tracks for note in track.notes)
    pitches = [
        note.pitch
        for track in score.tracks
        if track.channel != DRUM_CHANNEL
        for note in track.notes
    ]
    time = {"maj": 0.0, "min": 0.0}
    for start, end, label in clip_chords(piece):
        if label != "N":
            time[label.split(":")[1]] += end - start
    _, mode = theory.parse_key(plan.key)
    arousal = (
        _cut(2 * log2(plan.tempo_bpm / 60) / log2(3) - 1)
        + _cut(onsets / CLIP_SECONDS / 10 - 1)
        + _cut((plan.loudness_dbfs + 26) / 6)
    ) / 3
    valence = (
        (1 if mode == "major" else -1) / 2
        + (time["maj"] - time["min"]) / (time["maj"] + time["min"]) / 4
        + _cut((sum(pitches) / len(pitches) - 57) / 12) / 4
    )
    return round(valence, 4), round(arousal, 4)


def annotation_files(piece: Piece) -> dict[str, bytes]:
    """The clip's annotation files: name and content."""
    name = piece.plan.identifier
    beats = "".join(f"{time:.6f}\t{position}\n" for time, position in clip_beats(piece))
    chords = "".join(
        f"{start:.6f}\t{end:.6f}\t{label}\n" for start, end, label in clip_chords(piece)
    )
    files = {
        f"{name}.beats": beats.encode(),
        f"{name}.lab": chords.encode(),
        f"{name}.mid": encode_midi(clip_score(piece)),
    }
    sections = clip_sections(piece)
    if len(sections) > 1:
        starts = "".join(f"{start:.6f}\t{label}\n" for start, _, label in sections)
        files[f"{name}.txt"] = f"{starts}{sections[-1][1]:.6f}\tend\n".encode()
    return files


def manifest_row(piece: Piece, soundfont: str, has_stems: bool) -> dict[str, Any]:
    """The clip's line of the manifest."""
    plan = piece.plan
    name = plan.identifier
    valence, arousal = clip_mood(piece)
    row: dict[str, Any] = {
        "id": name,
        "path": f"audio/{name}.ogg",
        "split": name.split("-")[0],
        "piece": plan.title,
        "tags": clip_tags(plan),
        "style": plan.style,
        "key": plan.key,
        "tempo_bpm": round(plan.tempo_bpm, 2),
        "metre": plan.metre,
        "beats": f"annotations/{name}.beats",
        "chords": f"annotations/{name}.lab",
        "notes": f"annotations/{name}.mid",
        "valence": valence,
        "arousal": arousal,
        "soundfont": soundfont,
    }
    if has_stems:
        row["stems"] = f"stems/{name}"
    return row


def choose_stems(plans: Sequence[Plan], count: int) -> frozenset[str]:
    """The first `count` pieces that have all four roles, styles in turn."""
    full = [plan for plan in plans if len(plan.programs) == 4]
    chosen: list[Plan] = []
    while len(chosen) < count:
        rest = [plan for plan in full if plan not in chosen]
        styles = [plan.style for plan in chosen]
        chosen.append(min(rest, key=lambda plan: styles.count(plan.style)))
    return frozenset(plan.identifier for plan in chosen)


def _cut(value: float) -> float:
    return min(max(value, -1.0), 1.0)
