"""Labels of tracks, whatever the task: the tracks whose labels are usable, and hashes of labels."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.config import OnBadTrack
from m2v_finetune.data.checking import CheckedTrack, stop_or_skip, usable_by_split
from m2v_finetune.data.manifest import Track
from m2v_finetune.tasks.annotation_files import annotation_path, missing_annotation
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.frames import FrameTask
from m2v_finetune.tasks.separation import Separation
from m2v_finetune.tasks.separation.stem_files import stem_path
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.tasks.task import Task

Checked = TypeVar("Checked", bound=CheckedTrack)


def labelled_tracks(
    task: Task, splits: Mapping[str, Sequence[Checked]], *, on_bad_track: OnBadTrack
) -> dict[str, list[Checked]]:
    """Return the tracks whose labels or annotation a task can use.

    Args:
        task: Task, with its labels.
        splits: Tracks whose audio was checked, by split.
        on_bad_track: Whether to stop at unusable tracks, or to skip them.

    Returns:
        The usable tracks, by split.

    Raises:
        UserError: The labels of a track cannot be used and ``on_bad_track`` is ``stop``, or none of a split
            can: all are listed. Or they are tags that all training tracks have.
    """
    usable: list[Checked] = []
    problems: list[str] = []
    tracks = {name: [one.track for one in members] for name, members in splits.items()}
    for name, members in splits.items():
        for one, found in zip(members, task.label_problems(tracks[name]), strict=True):
            problems += found
            if not found:
                usable.append(one)
    stop_or_skip(
        list(dict.fromkeys(problems)),  # tracks may share a file
        num_tracks=sum(map(len, splits.values())),
        is_any_left=bool(usable),
        on_bad_track=on_bad_track,
    )
    left = usable_by_split(tracks, usable)[0]
    if isinstance(task, Tagging):  # whose metrics need tracks with and without each label
        task.check_one_class({name: [one.track for one in left[name]] for name in left})
    return left


def label_hash(task: Task, track: Track) -> str | None:
    """Return a hash of the labels of a track; None if there are none, or the task is of no known kind.

    It is of targets or annotations, not of their place, as a run may resume with files that were moved. Of
    stems it is of the sizes of their files.

    Args:
        task: Task that uses the labels.
        track: Track.
    """
    content: Any = None
    if isinstance(task, ClipTask):
        content = np.asarray(task.targets(track, IDENTITY)).tolist()
    elif isinstance(task, FrameTask):
        if missing_annotation(track, task.label_column) is None:
            data = annotation_path(track, task.label_column).read_bytes()
            content = hashlib.sha256(data).hexdigest()
    elif isinstance(task, Separation):
        folder = track.folder / str(track.columns.get(task.label_column))
        paths = [stem_path(folder, stem) for stem in task.stems]
        content = [None if path is None else path.stat().st_size for path in paths]
    if content is None:
        return None
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
