"""Look at every audio file before training starts, and name all that cannot be used."""

import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal, TypeVar

from rich.console import Console
from rich.progress import track as progress

from m2v_finetune.audio.copies import AudioCopy
from m2v_finetune.audio.decode import AudioInfo, inspect_audio
from m2v_finetune.data.manifest import Track, problem_list
from m2v_finetune.errors import AudioError, UserError

logger = logging.getLogger(__name__)

NUM_THREADS = 8
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedTrack:
    """A track whose audio can be read.

    Attributes:
        track: The track.
        audio: Rate, length and channels of its file.
        copy: What the backbone's windows are read from in place of the file, if anything.
    """

    track: Track
    audio: AudioInfo
    copy: AudioCopy | None = None


Checked = TypeVar("Checked", bound=CheckedTrack)


def check_tracks(
    tracks: Sequence[Track],
    *,
    on_bad_track: Literal["stop", "skip"],
    timeout_seconds: float = TIMEOUT_SECONDS,
    show_progress: bool = True,
) -> tuple[list[CheckedTrack], list[str]]:
    """Read the header and the end of every file (soundfile lets threads do that side by side).

    Args:
        tracks: Whose files to read.
        on_bad_track: Stop where any cannot be used, or go on without those.
        timeout_seconds: How long no file may be finished; 0 waits for ever.
        show_progress: On the terminal.

    Returns:
        The usable tracks in their order, and one line for each track that was skipped.

    Raises:
        UserError: A file cannot be used and ``on_bad_track`` is ``stop``, or none can: all are listed. Or no
            file was finished for ``timeout_seconds``: those that are being read are listed.
    """
    found = _look_at_all(tracks, timeout_seconds=timeout_seconds, show_progress=show_progress)
    problems = [item for item in found if isinstance(item, str)]
    checked = [
        CheckedTrack(track=track, audio=item)
        for track, item in zip(tracks, found, strict=True)
        if not isinstance(item, str)
    ]
    stop_or_skip(
        problems, num_tracks=len(tracks), is_any_left=bool(checked), on_bad_track=on_bad_track
    )
    return checked, problems


def _look_at_all(
    tracks: Sequence[Track], *, timeout_seconds: float, show_progress: bool
) -> list[AudioInfo | str]:
    """Return, for each track, its layout or why it cannot be used; `check_tracks` says the rest."""
    waiting = deque(enumerate(tracks))
    being_read: dict[int, Track] = {}
    answers: SimpleQueue[tuple[int, AudioInfo | str | Exception]] = SimpleQueue()

    def look() -> None:
        while True:
            try:
                number, track = waiting.popleft()
            except IndexError:
                return
            being_read[number] = track
            answer: AudioInfo | str | Exception
            try:
                answer = inspect_audio(track.path)
            except AudioError as error:
                answer = f"{track.origin}: {error}"
            except Exception as error:
                answer = error
            del being_read[number]
            answers.put((number, answer))

    # Not a pool: it would wait at the end for a thread that a dead drive holds, which nothing can end.
    for _ in range(min(NUM_THREADS, len(tracks))):
        Thread(target=look, daemon=True).start()
    found: dict[int, AudioInfo | str] = {}
    try:
        for _ in progress(
            tracks,
            description="Checking audio",
            console=Console(stderr=True),
            disable=not show_progress,
            transient=True,
        ):
            number, answer = answers.get(timeout=timeout_seconds or None)
            if isinstance(answer, Exception):
                raise answer
            found[number] = answer
    except Empty:
        raise UserError(
            problem_list(
                f"No audio file could be checked for {timeout_seconds:g} s. These are being read",
                [f"{track.origin}: {track.path}" for _, track in sorted(being_read.items())],
                "Look at their drive; if it is only slow, raise --data.timeout_seconds.",
            )
        ) from None
    finally:
        waiting.clear()
    return [found[number] for number in range(len(tracks))]


def stop_or_skip(
    problems: Sequence[str],
    *,
    num_tracks: int,
    is_any_left: bool,
    on_bad_track: Literal["stop", "skip"],
) -> None:
    """Warn of each problem with a track, or stop.

    Raises:
        UserError: There are problems and ``on_bad_track`` is ``stop``, or no track is left. All are listed.
    """
    if problems and (on_bad_track == "stop" or not is_any_left):
        raise UserError(
            problem_list(
                f"Of {num_tracks} tracks, these cannot be used",
                problems,
                "Repair or remove them, or go on without them by --data.on_bad_track skip.",
                limit=None,
            )
        )
    for problem in problems:
        logger.warning("Skipped %s", problem)


def check_splits(
    splits: Mapping[str, Sequence[Track]],
    *,
    on_bad_track: Literal["stop", "skip"],
    timeout_seconds: float = TIMEOUT_SECONDS,
    show_progress: bool = True,
) -> tuple[dict[str, list[CheckedTrack]], dict[str, int]]:
    """Check the files of all splits at once.

    Returns:
        The usable tracks, and the number of skipped ones, by split.

    Raises:
        UserError: As `check_tracks`, or no usable track is left in a split.
    """
    tracks = [track for members in splits.values() for track in members]
    checked, _ = check_tracks(
        tracks,
        on_bad_track=on_bad_track,
        timeout_seconds=timeout_seconds,
        show_progress=show_progress,
    )
    return usable_by_split(splits, checked)


def save_checked(path: Path, splits: Mapping[str, Sequence[CheckedTrack]]) -> None:
    """Write which tracks can be used, so that a run which goes on has the same windows."""
    content = {
        split: {
            checked.track.id: {**asdict(checked.audio), "is_converted": checked.copy is not None}
            for checked in members
        }
        for split, members in splits.items()
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def load_checked(
    path: Path, splits: Mapping[str, Sequence[Track]]
) -> tuple[dict[str, list[CheckedTrack]], dict[str, int]]:
    """Return the tracks that could be used when `save_checked` wrote them; no file is looked at.

    None has its copy: `converted_ids` says which had one.

    Returns:
        The usable tracks, and the number of the others, by split.

    Raises:
        UserError: The file is damaged, or the data no longer have such tracks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {
            split: {
                name: AudioInfo(**{k: v for k, v in info.items() if k != "is_converted"})
                for name, info in members.items()
            }
            for split, members in content.items()
        }
        if not all(known.get(split) for split in splits):
            raise ValueError("a split has no tracks")
        if not all(
            isinstance(number, int) and number > 0
            for members in known.values()
            for info in members.values()
            for number in (info.sample_rate, info.num_frames, info.num_channels)
        ):
            raise ValueError("the length of a track is no number")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged, so the run cannot go on ({error}). Begin again."
        ) from error
    usable = {
        split: [
            CheckedTrack(track=track, audio=known[split][track.id])
            for track in members
            if track.id in known.get(split, {})
        ]
        for split, members in splits.items()
    }
    gone = [
        f"{split}: {name}"
        for split, members in known.items()
        for name in sorted(set(members) - {checked.track.id for checked in usable.get(split, [])})
    ]
    if gone:
        raise UserError(
            problem_list(
                "The run began with tracks that the data no longer have in that split",
                gone,
                "Bring them back, or begin another run.",
            )
        )
    return usable, {split: len(splits[split]) - len(usable[split]) for split in splits}


def converted_ids(path: Path) -> set[str]:
    """Return the tracks that were read from copies when `save_checked` wrote them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        name
        for members in content.values()
        for name, info in members.items()
        if info.get("is_converted")
    }


def usable_by_split(
    splits: Mapping[str, Sequence[Track]], checked: Sequence[Checked]
) -> tuple[dict[str, list[Checked]], dict[str, int]]:
    """Return the usable tracks, and the number of skipped ones, by split.

    Raises:
        UserError: No usable track is left in a split.
    """
    usable = {name: [c for c in checked if c.track.split == name] for name in splits}
    for name, members in usable.items():
        if not members:
            raise UserError(
                f"None of the {len(splits[name])} tracks of the split '{name}' can be used (listed above). "
                "Repair or replace them."
            )
    return usable, {name: len(splits[name]) - len(usable[name]) for name in splits}
