"""Check every audio file before training starts, and list all that cannot be used."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal, TypeVar

from rich.console import Console
from rich.progress import track as progress

from m2v_finetune.audio.decode import AudioInfo, inspect_audio
from m2v_finetune.audio.resample_cache import ResampledAudio
from m2v_finetune.data.leaks import file_key, leaking_tracks
from m2v_finetune.data.manifest import Track, problem_list
from m2v_finetune.errors import AudioError, UserError

logger = logging.getLogger(__name__)

NUM_THREADS = 8
SKIP_OPTION = "--data.on_bad_track skip"
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedTrack:
    """Track whose audio can be read.

    Attributes:
        track: Track.
        audio: Rate, length and channels of its file.
        resampled: Resampled copy that the windows of the backbone are read from, if any.
    """

    track: Track
    audio: AudioInfo
    resampled: ResampledAudio | None = None


Checked = TypeVar("Checked", bound=CheckedTrack)


def check_tracks(
    tracks: Sequence[Track],
    *,
    on_bad_track: Literal["stop", "skip"],
    timeout_seconds: float = TIMEOUT_SECONDS,
    show_progress: bool = True,
    skip_option: str | None = SKIP_OPTION,
) -> tuple[list[CheckedTrack], list[str]]:
    """Read the header and the end of every file (soundfile lets threads do that side by side).

    Args:
        tracks: Tracks to check.
        on_bad_track: Stop if any cannot be used, or continue without those.
        timeout_seconds: Longest time without a finished file; 0 for no limit.
        show_progress: Show a bar on the terminal.
        skip_option: Option that skips bad tracks, for the message; None where they cannot be skipped.

    Returns:
        The usable tracks in their order, and one line for each track that was skipped.

    Raises:
        UserError: A file cannot be used and ``on_bad_track`` is ``stop``, or none can: all are listed. Or no
            file was finished for ``timeout_seconds``: those that are being read are listed.
    """
    checked, problems = _checked(
        tracks, timeout_seconds=timeout_seconds, show_progress=show_progress
    )
    stop_or_skip(
        problems,
        num_tracks=len(tracks),
        is_any_left=bool(checked),
        on_bad_track=on_bad_track,
        skip_option=skip_option,
    )
    return checked, problems


def _checked(
    tracks: Sequence[Track], *, timeout_seconds: float, show_progress: bool
) -> tuple[list[CheckedTrack], list[str]]:
    """Return the tracks that can be used, and why the others cannot."""
    found = _look_at_all(tracks, timeout_seconds=timeout_seconds, show_progress=show_progress)
    problems = [item for item in found if isinstance(item, str)]
    checked = [
        CheckedTrack(track=track, audio=item)
        for track, item in zip(tracks, found, strict=True)
        if not isinstance(item, str)
    ]
    return checked, problems


def _look_at_all(
    tracks: Sequence[Track], *, timeout_seconds: float, show_progress: bool
) -> list[AudioInfo | str]:
    """Return, for each track, its layout or why it cannot be used; see `check_tracks`."""
    waiting = deque(enumerate(tracks))
    being_read: dict[int, Track] = {}
    results: SimpleQueue[tuple[int, AudioInfo | str | Exception]] = SimpleQueue()

    def look() -> None:
        while True:
            try:
                number, track = waiting.popleft()
            except IndexError:
                return
            being_read[number] = track
            result: AudioInfo | str | Exception
            try:
                result = inspect_audio(track.path)
            except AudioError as error:
                result = f"{track.origin}: {error}"
            except Exception as error:
                result = error
            del being_read[number]
            results.put((number, result))

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
            number, result = results.get(timeout=timeout_seconds or None)
            if isinstance(result, Exception):
                raise result
            found[number] = result
    except Empty:
        raise UserError(
            problem_list(
                f"No audio file could be checked for {timeout_seconds:g} s. These are being read",
                [f"{track.origin}: {track.path}" for _, track in sorted(being_read.items())],
                "Check their drive; if it is only slow, raise --data.timeout_seconds.",
            ),
            code="data-check-timeout",
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
    skip_option: str | None = SKIP_OPTION,
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
                "Repair or remove them"
                + (f", or skip them with {skip_option}." if skip_option else "."),
                limit=None,
            ),
            code="data-bad-tracks",
        )
    for problem in problems:
        logger.warning("Skipped %s", problem)


def check_splits(
    splits: Mapping[str, Sequence[Track]],
    *,
    on_bad_track: Literal["stop", "skip"],
    timeout_seconds: float = TIMEOUT_SECONDS,
    show_progress: bool = True,
    skip_option: str | None = SKIP_OPTION,
) -> tuple[dict[str, list[CheckedTrack]], dict[str, int]]:
    """Check the files of all splits, and that no file is in two of them.

    Returns:
        The usable tracks, and the number of skipped ones, by split.

    Raises:
        UserError: Errors of `check_tracks`, where a file in two splits is a problem too; or a split has no
            usable track.
    """
    tracks = [track for members in splits.values() for track in members]
    checked, problems = _checked(
        tracks, timeout_seconds=timeout_seconds, show_progress=show_progress
    )
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        files = pool.map(file_key, (one.track.path for one in checked))
        leaks = leaking_tracks([one.track for one in checked], list(files))
    checked = [one for one in checked if one.track.id not in leaks]
    stop_or_skip(
        [*problems, *leaks.values()],
        num_tracks=len(tracks),
        is_any_left=bool(checked),
        on_bad_track=on_bad_track,
        skip_option=skip_option,
    )
    return usable_by_split(splits, checked)


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
                "Repair or replace them.",
                code="data-no-usable-track",
            )
    return usable, {name: len(splits[name]) - len(usable[name]) for name in splits}
