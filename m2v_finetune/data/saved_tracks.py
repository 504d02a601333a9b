"""Saved tracks of a run, which a resumed run uses even if the files were moved."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from m2v_finetune.audio.decode import AudioInfo
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track, problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedTrack:
    """Facts that `save_checked` saves about a track.

    Attributes:
        audio: Rate, length and channels of its file.
        num_bytes: Size of its file; None without a file, as for vectors in place of audio.
        is_resampled: True if it was read from a resampled copy.
        labels: Hash of its labels or annotation, with its vectors if it has any; None if the run has none.
    """

    audio: AudioInfo
    num_bytes: int | None
    is_resampled: bool
    labels: str | None = None

    @classmethod
    def of(cls, checked: CheckedTrack, labels: str | None = None) -> "SavedTrack":
        """Describe a track as it is now."""
        try:
            num_bytes = checked.track.path.stat().st_size
        except OSError:
            num_bytes = None
        return cls(
            audio=checked.audio,
            num_bytes=num_bytes,
            is_resampled=checked.resampled is not None,
            labels=labels,
        )

    def is_same_file(self, other: "SavedTrack") -> bool:
        """Return True if two descriptions are of one file, whatever its path."""
        return (self.audio, self.num_bytes) == (other.audio, other.num_bytes)


SavedTracks = Mapping[str, Mapping[str, SavedTrack]]
"""The tracks of a run, by split and id."""


def save_checked(
    path: Path,
    splits: Mapping[str, Sequence[CheckedTrack]],
    labels: Mapping[str, str | None] | None = None,
) -> None:
    """Save the usable tracks, so that a resumed run has the same windows and labels.

    Args:
        path: File to write.
        splits: Tracks by split.
        labels: Hash of the labels of each track, by its id; None if the run has no labels.
    """
    labels = labels or {}
    content = {
        split: {
            one.track.id: asdict(SavedTrack.of(one, labels.get(one.track.id))) for one in members
        }
        for split, members in splits.items()
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def load_checked(
    path: Path, splits: Mapping[str, Sequence[Track]]
) -> tuple[dict[str, list[CheckedTrack]], dict[str, int]]:
    """Return the tracks that could be used when `save_checked` wrote them; no file is read.

    None has its resampled copy: `resampled_ids` returns those that had one. A file that is gone is a bad
    track, once it is read.

    Returns:
        The usable tracks in their order of then, and the number of the others, by split.

    Raises:
        UserError: The file is damaged, or the data no longer have such tracks, or lists the tracks whose
            files have another size.
    """
    saved = _read(path)
    if not all(saved.get(split) for split in splits):
        raise _damaged(path, "a split has no tracks")
    usable = {}
    for split, members in splits.items():
        tracks = {track.id: track for track in members}
        # In the order of then: windows are drawn by the number of a track.
        usable[split] = [
            CheckedTrack(track=tracks[name], audio=facts.audio)
            for name, facts in saved[split].items()
            if name in tracks
        ]
    gone = [
        f"{split}: {name}"
        for split, members in saved.items()
        for name in sorted(set(members) - {checked.track.id for checked in usable.get(split, [])})
    ]
    if gone:
        raise UserError(
            problem_list(
                "The run was started with tracks that are no longer in that split of the data",
                gone,
                "Restore them, or start a new run.",
            ),
            code="run-tracks-missing",
        )
    other = [
        f"{split}: {one.track.id} ({one.track.path})"
        for split, members in usable.items()
        for one in members
        if saved[split][one.track.id].num_bytes not in (None, SavedTrack.of(one).num_bytes)
        and one.track.path.is_file()
    ]
    if other:
        raise UserError(
            problem_list(
                "The files of these tracks have another size than when the run was started",
                other,
                "Restore them, or start a new run.",
            ),
            code="run-data-changed",
        )
    return usable, {split: len(splits[split]) - len(usable[split]) for split in splits}


def require_same_files(path: Path, splits: Mapping[str, Sequence[CheckedTrack]]) -> None:
    """Check that the tracks of `save_checked` still exist, with the same files.

    Args:
        path: File that it wrote.
        splits: Current tracks; new ones among them do not matter.

    Raises:
        UserError: The file is damaged; or lists the tracks that are gone, in another split, or of another
            size, length, rate or number of channels.
    """
    problems = []
    for split, members in _read(path).items():
        now = {one.track.id: SavedTrack.of(one) for one in splits.get(split, ())}
        problems += [f"{split}: {name} is not there" for name in members if name not in now]
        problems += [
            f"{split}: {name} is another file, of another size or length"
            for name, saved in members.items()
            if name in now and not saved.is_same_file(now[name])
        ]
    if problems:
        raise UserError(
            problem_list(
                "data.source has changed: these tracks of the run are not in it",
                problems,
                "A run may resume with data that were moved or renamed, if the files and ids are the same. "
                "Give the new path by --data.source, or make a link to it under the old name; or "
                "start a new run.",
            ),
            code="run-data-changed",
        )


def require_same_labels(path: Path, labels: Mapping[str, str | None]) -> None:
    """Check that the tracks of `save_checked` have the labels of then.

    Args:
        path: File that it wrote.
        labels: Hash of the labels of each track now, by its id.

    Raises:
        UserError: The file is damaged; or lists the tracks whose labels, annotations or vectors changed.
    """
    changed = [
        f"{split}: {name}"
        for split, members in _read(path).items()
        for name, saved in members.items()
        if name in labels and saved.labels is not None and labels[name] != saved.labels
    ]
    if changed:
        raise UserError(
            problem_list(
                "These tracks of the run have other labels, annotations or vectors than when it was started",
                changed,
                "Restore them, or start a new run.",
            ),
            code="run-labels-changed",
        )


def resampled_ids(path: Path) -> set[str]:
    """Return the tracks that were read from copies when `save_checked` wrote them."""
    return {
        name
        for members in _read(path).values()
        for name, track in members.items()
        if track.is_resampled
    }


def _read(path: Path) -> SavedTracks:
    """Return the content that `save_checked` wrote; UserError if it is invalid."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        saved: SavedTracks = {
            split: {
                name: SavedTrack(**{**track, "audio": AudioInfo(**track["audio"])})
                for name, track in members.items()
            }
            for split, members in content.items()
        }
        if not all(
            isinstance(number, int) and number > 0
            for members in saved.values()
            for track in members.values()
            for number in asdict(track.audio).values()
        ):
            raise ValueError("the length of a track is not a number")
    except (
        FileNotFoundError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise _damaged(path, error) from error
    return saved


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(
        f"{path} is damaged ({reason}), so the run cannot resume. Start a new run.",
        code="run-tracks-unreadable",
    )
