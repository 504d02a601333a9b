"""Data sets of the Hub: of audio files, read like a folder, or of tables that hold the audio.

The reader of such a data set did not write it and cannot correct it. So some errors of a manifest of
one's own, such as two rows with the same recording, are allowed here. A track is named by its data in the
data set, never by the path of its copy on this machine: the same windows are sampled everywhere.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import metadata_load

from m2v_finetune.data.folders import find_audio, is_audio
from m2v_finetune.data.label_folders import read_label_folders
from m2v_finetune.data.manifest import (
    MANIFEST_NAMES,
    DatasetInfo,
    Track,
    read_manifest,
    tracks_from_rows,
)
from m2v_finetune.data.values import as_text, is_missing
from m2v_finetune.errors import UserError
from m2v_finetune.hub import download_dataset, explained

TABLE_PATTERNS = ("*.parquet", "*.arrow")


def read_hub_dataset(
    repo_id: str, label_column: str | None, max_failing_fraction: float
) -> tuple[list[Track], DatasetInfo]:
    """Read a data set of the Hub: one of audio files like a folder, one of tables through `datasets`.

    Args:
        repo_id: ``user/name``.
        label_column: Column of the labels, as in `read_label_folders`.
        max_failing_fraction: Share of the audio files that may fail to download.

    Returns:
        The tracks, and the facts about the data set.

    Raises:
        UserError: It cannot be fetched, or holds no tracks.
    """
    folder, missing = download_dataset(
        repo_id,
        ignore_patterns=TABLE_PATTERNS,
        is_audio=is_audio,
        max_failing_fraction=max_failing_fraction,
    )
    readme = folder / "README.md"
    card = (metadata_load(readme) if readme.is_file() else None) or {}
    dataset = DatasetInfo(
        name=repo_id,
        title=repo_id,
        licence=_licence(card.get("license")),
        homepage=f"https://huggingface.co/datasets/{repo_id}",
    )
    if missing or find_audio(folder).names:
        manifest = next(
            (folder / name for name in MANIFEST_NAMES if (folder / name).is_file()), None
        )
        if manifest is None:
            tracks = read_label_folders(folder, label_column, missing=missing, is_foreign=True)
            return tracks, dataset
        return read_manifest(manifest, is_foreign=True), dataset
    return _from_tables(repo_id), dataset


def _licence(written: Any) -> str:
    """Return the licence that a card names, or several; empty where there is none."""
    several = written if isinstance(written, list) else [written]
    return ", ".join(str(one) for one in several if not is_missing(one))


def _from_tables(repo_id: str) -> list[Track]:
    """Read a data set with audio embedded in its tables; the other columns become the tracks' columns.

    The audio is written to files once, in the cache of data sets, so that excerpts of it are read by
    seeking like those of any other file. The id of a track is its own column ``id``, else the name of its
    audio in the table, else the number of its row; with its split in front where there are splits.
    """
    # Imported here: it takes seconds, and most runs read files.
    import datasets

    try:
        with explained(f"read the data set {repo_id}"):
            loaded = datasets.load_dataset(repo_id)
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        reason = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
        raise UserError(
            f"Could not read the data set {repo_id}: {reason}", code="hub-dataset-unreadable"
        ) from error
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "m2v-finetune" / repo_id.replace("/", "--")
    has_splits = len(loaded) > 1  # one without splits is all 'train' on the Hub
    rows: list[tuple[int, dict[str, Any]]] = []
    for split, table in loaded.items():
        columns = [
            name for name, kind in table.features.items() if isinstance(kind, datasets.Audio)
        ]
        if len(columns) != 1:
            raise UserError(
                f"The data set {repo_id} has {len(columns)} audio columns in its split '{split}' "
                f"(columns: {', '.join(table.features)}). Exactly one is needed.",
                code="hub-audio-columns",
            )
        undecoded = table.cast_column(columns[0], datasets.Audio(decode=False))
        for number, row in enumerate(_named_rows(undecoded)):
            audio = row.pop(columns[0])
            row["id"] = _track_name(row.get("id"), audio["path"], number)
            row["path"] = _audio_file(audio, cache)
            if has_splits:
                row["split"] = split
                # Ids and names of each split often start anew.
                row["id"] = f"{split}/{row['id']}"
            rows.append((len(rows) + 1, row))
    return tracks_from_rows(rows, folder=cache, name=repo_id, path_rule="foreign")


def _track_name(own_id: Any, audio_path: str | None, number: int) -> str:
    """Return the name of a row in its data set, the same on every machine.

    >>> _track_name(None, "/home/me/a.wav", 7), _track_name(0, "a.wav", 7), _track_name(None, None, 7)
    ('a.wav', '0', '7')
    """
    if isinstance(own_id, str | int | float) and not is_missing(own_id):
        return as_text(own_id)
    # A path of another machine, or into an archive in the cache of this one: zip://a.wav::/cache/b
    name = (audio_path or "").split("::")[0].removeprefix("zip://")
    name = PurePosixPath(name).name if name.startswith("/") else name
    return str(number) if is_missing(name) else name


def _named_rows(table: Any) -> Iterable[dict[str, Any]]:
    """Yield the rows of a table of the Hub with class numbers turned into their names."""
    import datasets

    namers: dict[str, Any] = {}
    for name, kind in table.features.items():
        inner = getattr(kind, "feature", kind)
        if isinstance(inner, datasets.ClassLabel):
            namers[name] = inner.int2str
    for row in table:
        for name, to_name in namers.items():
            if row[name] is not None:
                row[name] = to_name(row[name])
        yield row


def _audio_file(audio: dict[str, Any], cache: Path) -> str:
    """Return the path of a row's audio, writing embedded bytes to the cache under their checksum."""
    content: bytes | None = audio["bytes"]
    if content is None:
        raise UserError(
            f"A table names the audio file '{audio['path']}' but does not embed it. Files outside of a data "
            "set of the Hub are not read.",
            code="hub-outside-file",
        )
    suffix = Path(audio["path"] or "audio.wav").suffix
    path = cache / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    return str(path)
