"""Search a folder for audio at any depth, and count and name the files that are not read.

Links are followed wherever they lead, as a folder of links to a drive with music is common. A file or folder
that is reached under several names is found once.
"""

import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from m2v_finetune.data.values import printable

AUDIO_SUFFIXES = {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"}
# Folders of the system; only root may enter the first.
SYSTEM_FOLDERS = {"lost+found", "System Volume Information", "$RECYCLE.BIN", "__MACOSX"}
MAX_NAMES = 5
"""Names in a line that counts many."""
MAX_SUFFIX_LENGTH = 6
"""Longer text after the last dot, as in ``01. intro``, is not a suffix."""


def is_audio(path: str | PurePath) -> bool:
    """Return True for the path of an audio file in its folder; hidden files (``._a.mp3``) are not audio."""
    path = PurePath(path)
    return path.suffix.lower() in AUDIO_SUFFIXES and not any(map(_is_hidden, path.parts))


@dataclass(kw_only=True)
class FolderContent:
    """Result of `find_audio`; all paths are relative to the folder, with ``/``.

    Attributes:
        names: Names of each audio file, by its path without links: more than one where links lead to it.
        folders: Every folder that was entered.
        suffixes: Number of files for each suffix that is not read.
        problems: Names that could not be entered or found, with the reason.
        loops: Links back to a folder that they are in.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    suffixes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Return a line for each kind of thing that is not read."""
        lines = [f"not entered: {problem}" for problem in sorted(self.problems)]
        lines += [f"{name} leads back to a folder that it is in" for name in sorted(self.loops)]
        if self.suffixes:
            counts = ", ".join(
                f"{suffix or 'without one'} ({count})"
                for suffix, count in self.suffixes.most_common()
            )
            lines.append(
                f"{count_of(self.suffixes.total(), 'file')} of "
                f"{count_of(len(self.suffixes), 'other suffix', 'other suffixes')} not read: {counts}"
            )
        return lines


def find_audio(folder: Path, *, read_elsewhere: Iterable[str] = ()) -> FolderContent:
    """Find the audio files of a folder, at any depth and behind links, but none whose name starts with a dot.

    Args:
        folder: Folder to search.
        read_elsewhere: Names of files in it, such as ``dataset.json``, that are not audio but
            are read elsewhere.
    """
    return _Search(folder, frozenset(read_elsewhere)).run()


class _Search:
    """Search of a folder: first its content, then the targets of its links, one after the other."""

    def __init__(self, folder: Path, read_elsewhere: frozenset[str]) -> None:
        self.folder = folder
        self.read_elsewhere = read_elsewhere
        self.found = FolderContent()
        self.entered: dict[
            str, str
        ] = {}  # folders without links, and the name they were entered by
        self.links: list[str] = []  # to folders, a heap of those to follow
        self.aliases: list[tuple[str, str]] = []  # other names of folders that were entered

    def run(self) -> FolderContent:
        self._enter("", os.path.realpath(self.folder))
        while self.links:
            link = heapq.heappop(self.links)
            self._enter(link, os.path.realpath(self.folder / link))
        for alias, first in self.aliases:
            for names in self.found.names.values():
                names += [
                    alias + name[len(first) :] for name in names if name.startswith(f"{first}/")
                ]
        return self.found

    def _enter(self, name: str, real: str) -> None:
        """Look through a folder and all in it; links wait."""
        waiting = [(name, real)]
        while waiting:
            name, real = waiting.pop()
            if real in self.entered:
                self._meet_again(name, self.entered[real])
                continue
            self.entered[real] = name
            try:
                with os.scandir(real) as entries:
                    members = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.found.problems.append(f"{printable(name) or '.'} ({error.strerror})")
                continue
            self.found.folders.append(name)
            for member in members:
                if not _is_hidden(member.name) and member.name not in SYSTEM_FOLDERS:
                    waiting += self._take(member, f"{name}/{member.name}" if name else member.name)

    def _take(self, member: os.DirEntry[str], name: str) -> list[tuple[str, str]]:
        """Record a member of a folder; return it if it is a folder and no link."""
        real = member.path
        is_folder = member.is_dir(follow_symlinks=False)
        if member.is_symlink():
            real = os.path.realpath(real)
            try:
                is_folder = stat.S_ISDIR(os.stat(member.path).st_mode)  # noqa: PTH116 (of an entry)
            except OSError as error:
                if not is_audio(name):  # whose check reports the same
                    where = f"{printable(name)}, a link to {printable(real)}"
                    self.found.problems.append(f"{where} ({error.strerror})")
                    return []
            if is_folder:
                heapq.heappush(self.links, name)
                return []
        if is_folder:
            return [(name, real)]
        if is_audio(name):
            self.found.names.setdefault(real, []).append(name)
        elif name not in self.read_elsewhere:
            suffix = PurePath(name).suffix.lower()
            is_one = suffix[1:].isalnum() and len(suffix) <= MAX_SUFFIX_LENGTH
            self.found.suffixes[suffix if is_one else ""] += 1
        return []

    def _meet_again(self, name: str, first: str) -> None:
        """Record another name of an entered folder; it is a loop if the name is below the folder."""
        if name.startswith(f"{first}/" if first else ""):
            self.found.loops.append(printable(name))
        else:
            self.aliases.append((name, first))


def count_of(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    >>> count_of(1, "file"), count_of(2, "file")
    ('1 file', '2 files')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def some_of(names: Sequence[str]) -> str:
    """Return the first names of many, on one line."""
    shown = ", ".join(printable(name) for name in names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more"


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
