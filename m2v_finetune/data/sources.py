"""Sources of tracks: a manifest, a folder, a data set of the Hub, or shipped data.

Every source is read into a list of `Track` whose audio is in files.
"""

from pathlib import Path

from m2v_finetune.data.hub_sources import read_hub_dataset
from m2v_finetune.data.label_folders import read_label_folders
from m2v_finetune.data.manifest import (
    MANIFEST_NAMES,
    DatasetInfo,
    Track,
    read_dataset_info,
    read_manifest,
)
from m2v_finetune.data.quickstart import QUICKSTARTS
from m2v_finetune.data.values import printable
from m2v_finetune.errors import UserError
from m2v_finetune.files import expand_home
from m2v_finetune.hub import is_repo_id
from m2v_finetune.path_hints import did_you_mean


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
        label_column: Column under which labels taken from folder names are filed; None where no
            labels are needed: then a folder may hold its audio at any depth.
        allow_outside: Let relative paths of a manifest of one's own lead out of its folder.
        max_failing_fraction: Share of the audio files of a Hub data set that may fail to download.
            Their tracks are returned like the others; the check of the audio reports the missing files.

    Returns:
        The tracks, and the facts about the data set.

    Raises:
        UserError: There is nothing at the source, or it cannot be read.
    """
    if source in QUICKSTARTS:
        return _from_manifest(QUICKSTARTS[source], allow_outside=False)
    path = expand_home(source)
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"The data source '{printable(source[:200])}' cannot be read ({printable(str(error))}).",
            code="data-unreadable",
        ) from error
    if path.is_file():
        return _from_manifest(path, allow_outside=allow_outside)
    if path.is_dir():
        manifest = next((path / name for name in MANIFEST_NAMES if (path / name).is_file()), None)
        if manifest is not None:
            return _from_manifest(manifest, allow_outside=allow_outside)
        return read_label_folders(path, label_column), _dataset_info(path)
    if is_repo_id(source) and path.suffix not in (".csv", ".jsonl"):
        try:
            return read_hub_dataset(source, label_column, max_failing_fraction)
        except UserError as error:
            raise UserError(f"{error}{did_you_mean(path.absolute())}", code=error.code) from error
    raise UserError(
        f"There is no data at '{printable(source)}'.{did_you_mean(path.absolute())} Give a .csv or "
        ".jsonl manifest, a folder that holds one "
        f"({', '.join(MANIFEST_NAMES)}), a folder with one folder per label, a Hub data set id "
        f"(user/name), or included data: {', '.join(QUICKSTARTS)}.",
        code="data-not-found",
    )


def _from_manifest(path: Path, *, allow_outside: bool) -> tuple[list[Track], DatasetInfo]:
    tracks = read_manifest(path, allow_outside=allow_outside)
    return tracks, _dataset_info(path.parent)


def _dataset_info(folder: Path) -> DatasetInfo:
    return read_dataset_info(folder, name=printable(folder.resolve().name))
