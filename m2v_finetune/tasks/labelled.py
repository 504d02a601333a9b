"""Selection of the tracks whose labels are usable."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from m2v_finetune.config import OnBadTrack
from m2v_finetune.data.checking import CheckedTrack, stop_or_skip, usable_by_split
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
