"""Where tracks come from: a manifest, a folder, a data set of the Hub, or what ships.

Whatever the source, what comes out is a list of `Track` whose audio lies in files.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import metadata_load

from m2v_finetune.data.manifest import (
    MANIFEST_NAMES,
    SPLIT_ALIASES,
    SPLITS,
    DatasetInfo,
    Track,
    read_dataset_info,
    read_manifest,
    tracks_from_rows,
)
from m2v_finetune.data.quickstart import QUICKSTARTS
from m2v_finetune.errors import UserError
from m2v_finetune.hub import download_dataset, explained, is_repo_id

AUDIO_SUFFIXES = {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"}
TABLE_PATTERNS = ("*.parquet", "*.arrow")


def load_tracks(
    source: str,
    *,
    label_column: str | None,
    allow_outside: bool = False,
    max_failing_fraction: float = 0.0,
) -> tuple[list[Track], DatasetInfo]:
    """Find the tracks of a source.

    Args:
        source: A manifest, a folder with a manifest, a folder with one folder per label, a Hub data set
            id, or the name of a set that ships, such as ``quickstart``.
        label_column: The column under which labels taken from folder names are filed; None where no
            labels are needed: then a folder may hold its audio at any depth.
        allow_outside: Let relative paths of a manifest of one's own lead out of its folder.
        max_failing_fraction: The share of the audio files of a Hub data set that may fail to be fetched.
            Their tracks are returned like the others; that there is no such file is for others to find.

    Returns:
        The tracks, and what is known of the data set.

    Raises:
        UserError: There is nothing at the source, or it cannot be read.
    """
    if source in QUICKSTARTS:
        return _from_manifest(QUICKSTARTS[source], allow_outside=False)
    path = Path(source).expanduser()
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(f"The data source '{source[:200]}' cannot be read ({error}).") from error
    if path.is_file():
        return _from_manifest(path, allow_outside=allow_outside)
    if path.is_dir():
        manifest = next((path / name for name in MANIFEST_NAMES if (path / name).is_file()), None)
        if manifest is not None:
            return _from_manifest(manifest, allow_outside=allow_outside)
        return _from_folders(path, label_column)
    if is_repo_id(source) and path.suffix not in (".csv", ".jsonl"):
        return _from_hub(source, label_column, max_failing_fraction)
    raise UserError(
        f"There is no data at '{source}'. Give a .csv or .jsonl manifest, a folder that holds one "
        f"({', '.join(MANIFEST_NAMES)}), a folder with one folder per label, a Hub data set id "
        f"(user/name), or what ships: {', '.join(QUICKSTARTS)}."
    )


def _from_manifest(path: Path, *, allow_outside: bool) -> tuple[list[Track], DatasetInfo]:
    tracks = read_manifest(path, allow_outside=allow_outside)
    return tracks, read_dataset_info(path.parent, name=path.resolve().parent.name)


def _from_folders(
    folder: Path, label_column: str | None, *, missing: Sequence[str] = ()
) -> tuple[list[Track], DatasetInfo]:
    """Read ``<label>/<file>`` or ``<split>/<label>/<file>``; without labels, any file, or ``<split>/...``.

    Files that are missing are tracks like the others.
    """
    paths = {*_audio_files(folder), *(folder / name for name in missing)}
    found = [path.relative_to(folder).parts for path in sorted(paths)]
    names = {parts[0].lower() for parts in found if len(parts) > 1}
    has_splits = bool(names) and names <= {*SPLITS, *SPLIT_ALIASES}
    least_depth = 1 + has_splits + (label_column is not None)
    rows: list[tuple[int, dict[str, Any]]] = []
    for parts in found:
        if len(parts) < least_depth:
            continue
        row: dict[str, Any] = {"path": str(Path(*parts))}
        if label_column is not None:
            row[label_column] = [parts[int(has_splits)]]
        if has_splits:
            row["split"] = parts[0]
        rows.append((len(rows) + 1, row))
    if not rows and label_column is None:
        raise UserError(
            f"The folder {folder} holds no manifest ({', '.join(MANIFEST_NAMES)}) and no audio "
            f"({', '.join(sorted(AUDIO_SUFFIXES))})."
        )
    if not rows:
        raise UserError(
            f"The folder {folder} holds no manifest ({', '.join(MANIFEST_NAMES)}) and no audio in folders "
            f"named by label, such as {folder / 'jazz' / 'song.mp3'}."
        )
    return (
        tracks_from_rows(rows, folder=folder, name=str(folder)),
        read_dataset_info(folder, name=folder.resolve().name),
    )


def _audio_files(folder: Path) -> Iterator[Path]:
    """Yield audio files at any depth."""
    for path in folder.rglob("*"):
        if _is_audio(path.relative_to(folder)):
            yield path


def _is_audio(path: str | PurePath) -> bool:
    """Tell by its path in its folder; what a dot hides (such as ``._song.mp3``) is no audio."""
    path = PurePath(path)
    is_hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in AUDIO_SUFFIXES and not is_hidden


def _from_hub(
    repo_id: str, label_column: str | None, max_failing_fraction: float
) -> tuple[list[Track], DatasetInfo]:
    """Read a data set of the Hub: one of audio files like a folder, one of tables through `datasets`."""
    folder, missing = download_dataset(
        repo_id,
        ignore_patterns=TABLE_PATTERNS,
        is_audio=_is_audio,
        max_failing_fraction=max_failing_fraction,
    )
    readme = folder / "README.md"
    card = (metadata_load(readme) if readme.is_file() else None) or {}
    dataset = DatasetInfo(
        name=repo_id,
        title=repo_id,
        licence=str(card.get("license") or ""),
        homepage=f"https://huggingface.co/datasets/{repo_id}",
    )
    if missing or any(_audio_files(folder)):
        manifest = next(
            (folder / name for name in MANIFEST_NAMES if (folder / name).is_file()), None
        )
        if manifest is None:
            return _from_folders(folder, label_column, missing=missing)[0], dataset
        return read_manifest(manifest, is_foreign=True), dataset
    return _from_tables(repo_id), dataset


def _from_tables(repo_id: str) -> list[Track]:
    """Read a data set whose tables hold the audio; the other columns become the tracks' columns.

    The audio is written to files once, in the cache of data sets, so that excerpts of it are read by
    seeking like those of any other file.
    """
    # Imported here: it takes seconds, and most runs read files.
    import datasets

    try:
        with explained(f"read the data set {repo_id}"):
            loaded = datasets.load_dataset(repo_id)
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        raise UserError(f"Could not read the data set {repo_id}: {error}") from error
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
                f"(columns: {', '.join(table.features)}). Exactly one is needed."
            )
        undecoded = table.cast_column(columns[0], datasets.Audio(decode=False))
        for row in _named_rows(undecoded):
            row["path"] = _audio_file(row.pop(columns[0]), cache)
            if has_splits:
                row["split"] = split
                # The rows of each split are often counted from 0.
                row["id"] = f"{split}/{row.get('id', len(rows))}"
            rows.append((len(rows) + 1, row))
    tracks = tracks_from_rows(rows, folder=cache, name=repo_id)
    return [replace(track, path_rule="foreign") for track in tracks]


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
            f"A table names the audio file '{audio['path']}' in place of holding it. What a data set of the "
            "Hub names outside of itself is not read."
        )
    suffix = Path(audio["path"] or "audio.wav").suffix
    path = cache / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    return str(path)
