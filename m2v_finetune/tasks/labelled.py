"""Tracks whose labels can be used: all of them, or what is left without the others."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from m2v_finetune.config import OnBadTrack
from m2v_finetune.data.checking import CheckedTrack, stop_or_skip, usable_by_split
from m2v_finetune.tasks.task import Task

Checked = TypeVar("Checked", bound=CheckedTrack)


def labelled_tracks(
    task_class: type[Task],
    config: Any,
    splits: Mapping[str, Sequence[Checked]],
    *,
    on_bad_track: OnBadTrack,
) -> tuple[Task, dict[str, list[Checked]]]:
    """Make a task of checked tracks, and leave out those whose labels or annotation it cannot use.

    Args:
        task_class: The task.
        config: Its settings.
        splits: The tracks, those of ``train`` among them.
        on_bad_track: Stop where any cannot be used, or go on without those.

    Returns:
        The task, and the tracks that it can use.

    Raises:
        UserError: As `Task.from_training`; or the labels of a track cannot be used and ``on_bad_track`` is
            ``stop``, or none of a split can: all are listed.
    """
    tracks = {name: [one.track for one in members] for name, members in splits.items()}
    task = task_class.from_training(config, tracks["train"])
    usable: list[Checked] = []
    problems: list[str] = []
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
    return task, usable_by_split(tracks, usable)[0]
