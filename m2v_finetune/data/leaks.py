"""Check for leaks: a recording must not be in the training split and in an evaluation split."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from m2v_finetune.data.manifest import Track

KEPT_FIRST = ("test", "validation", "train")
"""Priority of the splits for a recording in several of them: the test split stays as published."""


def file_key(path: Path) -> Hashable:
    """Return a key that all names of a file share, by links of both kinds; the path if there is none."""
    try:
        status = path.stat()
    except OSError:  # it is gone since it was checked
        return path
    # Size and time too: some network drives give one number to several files.
    one = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return one if status.st_ino else path


def leaking_tracks(tracks: Sequence[Track], files: Sequence[Hashable]) -> Mapping[str, str]:
    """Return the tracks with a file that is also in another split, except in the split that keeps it.

    Args:
        tracks: Tracks of all splits.
        files: Unique key of the file of each track.

    Returns:
        By the id of each such track, where it is and where it stays.
    """
    of_file: dict[Hashable, list[Track]] = {}
    for track, file in zip(tracks, files, strict=True):
        of_file.setdefault(file, []).append(track)
    found = {}
    for members in of_file.values():
        splits = {track.split for track in members}
        if len(splits) < 2:
            continue
        kept = next(name for name in KEPT_FIRST if name in splits)
        first = next(track for track in members if track.split == kept)
        for track in members:
            if track.split != kept:
                found[track.id] = (
                    f"{track.origin}: the file of '{track.id}' in {track.split} is that of '{first.id}' in "
                    f"{kept} ({first.origin}), where it stays if this one is skipped"
                )
    return found
