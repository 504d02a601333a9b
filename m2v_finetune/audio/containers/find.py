"""Detect the container of a file by its content."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from m2v_finetune.audio.containers import chunk_formats, chunks, elements, flac, mpeg, ogg
from m2v_finetune.audio.containers.mpeg_frames import first_frame
from m2v_finetune.audio.containers.source import ByteFile, Part, skip_tag, skip_tags


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """Structure of a file.

    Attributes:
        parts: Parts to decode one after the other; empty if its structure is not known here.
        needs_ffmpeg: libsndfile does not read it.
    """

    parts: tuple[Part, ...]
    needs_ffmpeg: bool = False


@lru_cache(maxsize=4096)  # the structure of an unchanged file is read once
def find_container(path: Path, _version: tuple[int, ...]) -> Container:
    """Look at the structure of a file.

    Args:
        path: File, which is not empty.
        _version: Value that changes with the file.

    Raises:
        AudioError: By its structure, sound is missing.
        OSError: The file cannot be read.
    """
    with path.open("rb", buffering=0) as opened:
        file = ByteFile(path, opened)
        start = 0
        head = file.read(0, 16)
        while not elements.is_head(head) and (after := skip_tag(file, start)) != start:
            start, head = after, file.read(after, 16)
        if not elements.is_head(head):  # MP4 starts with zeros
            start = skip_tags(file, start)
            head = file.read(start, 16)
        if elements.is_head(head):
            return Container(parts=tuple(elements.find_parts(file, start)), needs_ffmpeg=True)
        if chunk_formats.kind(head) is not None:
            return Container(parts=tuple(chunks.find_parts(file, start)))
        if head.startswith(flac.MAGIC):
            return Container(parts=tuple(flac.find_parts(file, start)))
        if head.startswith(ogg.MAGIC):
            return Container(parts=tuple(ogg.find_parts(file, start)))
        first = first_frame(file, 0)
        if first is not None:
            return Container(parts=tuple(mpeg.find_parts(file, first)))
        return Container(parts=())
