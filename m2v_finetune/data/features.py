"""Precomputed vectors in place of audio: a table of `m2v embed`, or one ``.npy`` file a clip.

The layout of files is that of jukemir's archives: a folder with ``<clip>.npy``, float32 of one size. A track
has the clips that its manifest lists in the column ``clips``; without it, the clip with the name of its id.
In a table, a track has the rows of its id.

Source: Castellon et al. 2021, "Codified audio language modeling learns useful representations for music
information retrieval"; p-lambda/jukemir (``probe/__init__.py`` for the layout).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.decode import AudioInfo
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.data.checking import CheckedTrack, stop_or_skip, usable_by_split
from m2v_finetune.data.feature_tables import is_table, read_table
from m2v_finetune.data.leaks import leaking_tracks
from m2v_finetune.data.loader import Augment, Window
from m2v_finetune.data.manifest import Track, as_labels
from m2v_finetune.data.paths import path_problem
from m2v_finetune.errors import UserError
from m2v_finetune.path_hints import did_you_mean

Array = NDArray[np.float32]
CLIPS_COLUMN = "clips"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VectorTrack(CheckedTrack):
    """Track with its vectors. Its ``audio`` has one sample a second for each clip.

    Attributes:
        vectors: (clips, size), finite.
    """

    vectors: Array


def read_vector_splits(
    splits: Mapping[str, Sequence[Track]], folder: Path, *, on_bad_track: Literal["stop", "skip"]
) -> tuple[dict[str, list[VectorTrack]], dict[str, int]]:
    """Read the vectors of all tracks, as `check_splits` does for audio.

    Args:
        splits: Tracks.
        folder: Folder with the files of the clips, or of a table.
        on_bad_track: ``stop``, or continue without tracks that have a bad file.

    Returns:
        The tracks with vectors, and the number of skipped ones, by split.

    Raises:
        UserError: The folder is missing; a file is missing, not such a vector, of another size than most,
            or not finite, and ``on_bad_track`` is ``stop``; or no track is left in a split. All are listed.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder} with vectors. Give to --data.features the folder that m2v embed "
            "wrote, or one that holds one .npy file for each clip.",
            code="vectors-no-folder",
        )
    tracks = [track for members in splits.values() for track in members]
    read = _read_rows(tracks, folder) if is_table(folder) else _read_files(tracks, folder)
    sizes = Counter(rows.shape[1] for _, files, _ in read for rows in files.values())
    size = sizes.most_common(1)[0][0] if sizes else 0
    usable, problems = [], []
    for track, files, found in read:
        found += [
            f"{location}: {rows.shape[1]} numbers, where most clips have {size}"
            for location, rows in files.items()
            if rows.shape[1] != size
        ]
        problems += found
        if not found:
            vectors = np.concatenate(list(files.values()))
            info = AudioInfo(sample_rate=1, num_frames=len(vectors), num_channels=1)
            usable.append(VectorTrack(track=track, audio=info, vectors=vectors))
    # Rows of a data set of the Hub may share a file; the audio itself is not looked at.
    leaks = leaking_tracks([one.track for one in usable], [one.track.path for one in usable])
    usable = [one for one in usable if one.track.id not in leaks]
    problems += leaks.values()
    stop_or_skip(
        problems, num_tracks=len(tracks), is_any_left=bool(usable), on_bad_track=on_bad_track
    )
    return usable_by_split(splits, usable)


def read_vector(checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
    """Return the vector of the clip that a window is, (size,)."""
    assert isinstance(checked, VectorTrack)
    return (checked.vectors[window.start_sample],)


def vector_example(
    checked: CheckedTrack,
    window: Window,
    augment: Augment | None,
    *,
    targets: Callable[[Track, LabelTransform], Array],
) -> tuple[Array, ...]:
    """Return the vector of a clip, and the targets of its track."""
    assert augment is None, "nothing augments vectors"
    return *read_vector(checked, window), targets(checked.track, IDENTITY)


def _read_files(
    tracks: Sequence[Track], folder: Path
) -> list[tuple[Track, dict[str, Array], list[str]]]:
    """Return each track with the vectors of its files, and their problems."""
    return [(track, *_read_track(track, folder)) for track in tracks]


def _read_rows(
    tracks: Sequence[Track], folder: Path
) -> list[tuple[Track, dict[str, Array], list[str]]]:
    """Return each track with its vectors in a table of `m2v embed`, and the problem if it has none."""
    vectors, errors = read_table(folder, {track.id: track.path for track in tracks})
    read: list[tuple[Track, dict[str, Array], list[str]]] = []
    for track in tracks:
        location = f"{track.origin}, track {track.id}: {folder}"
        if track.id in vectors:
            read.append((track, {location: vectors[track.id]}, []))
        else:
            why = errors.get(track.id, "the table has no row with this id")
            read.append((track, {}, [f"{location}: {why}"]))
    return read


def _read_track(track: Track, folder: Path) -> tuple[dict[str, Array], list[str]]:
    """Return the vectors of each file of a track, (count, size), and the problems of the other files.

    Both name the file as messages do.
    """
    files: dict[str, Array] = {}
    problems = []
    try:
        clips = as_labels(track, CLIPS_COLUMN) or [track.id]
    except ValueError as error:
        return {}, [f"{track.origin}, track {track.id}: {error}"]
    for clip in clips:
        path = folder / f"{clip}.npy"
        location = f"{track.origin}, track {track.id}: {path}"
        out = path_problem(f"{clip}.npy", folder, track.path_rule)
        if out is not None:
            problems.append(f"{track.origin}, track {track.id}: {out}")
            continue
        try:
            files[location] = _read_file(path)
        except FileNotFoundError:
            problems.append(f"{location} is missing.{did_you_mean(path.absolute())}")
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            problems.append(f"{location} holds no vector ({error})")
    return files, problems


def _read_file(path: Path) -> Array:
    """Return the vectors of a file, (count, size); ValueError where it holds something else."""
    content = np.load(path, allow_pickle=False)
    if not isinstance(content, np.ndarray) or content.dtype.kind not in "fiu":
        raise ValueError("it is no .npy file of real numbers")
    if content.ndim not in (1, 2) or content.size == 0:
        raise ValueError(f"its shape is {content.shape}, not (size,) or (count, size)")
    with np.errstate(over="ignore"):
        rows = np.atleast_2d(content.astype(np.float32))
    if not np.isfinite(rows).all():
        raise ValueError("nan or infinity is in it")
    return rows
