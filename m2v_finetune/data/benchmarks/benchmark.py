"""Description of a public data set: its facts, its label files, and the rows of its manifests."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.errors import UserError

MISSING = "missing"
"""Problem of a file that does not exist."""

Row = dict[str, Any]
"""Line of a manifest: ``id``, ``path`` relative to the root, ``split`` and the label columns."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """Label file at a public address.

    Attributes:
        url: ``https`` address that names one version for good, such as one with a commit.
        path: Path of the file, relative to the root of the data set.
        sha256: Sum of the content in hexadecimal; None where the sum is not known. Then the commit
            in the address pins the content, and the reader of the file checks its counts.
        md5: Sum of the content where only this one is published.
    """

    url: str
    path: str
    sha256: str | None
    md5: str | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Public data set as `prepare_benchmark` needs it.

    Attributes:
        info: Facts for the model card.
        remote_files: Label files to fetch; none if the labels are beside the audio.
        instructions: Steps to get the audio by hand; ``{root}`` is the root folder.
        recipes: Names of the recipes that train on it, such as ``tagging``; so are their folders of
            configs.
        manifests: Reads the label files below a root and returns the rows of each manifest by file
            name. Where a file or folder is missing it raises FileNotFoundError, and `prepare_benchmark`
            shows the instructions. A row has ``id``, ``path`` relative to the root, ``split`` and the
            label columns.
        check_labels: Looks into the label files of one row, and returns all that is wrong with them,
            each with its file and line; None where labels are not in files of their own.
    """

    info: DatasetInfo
    remote_files: tuple[RemoteFile, ...]
    instructions: str
    recipes: tuple[str, ...]
    manifests: Callable[[Path], dict[str, list[Row]]]
    check_labels: Callable[[Path, Row], list[str]] | None = None


def require_counts(
    rows: Iterable[Row],
    published: Mapping[str, int],
    *,
    source: Path,
    advice: str = "Delete it, and it is fetched again.",
) -> None:
    """Check that every split has as many tracks as published.

    Args:
        rows: All rows of a manifest.
        published: Tracks by split.
        source: Source of the rows, for the message.
        advice: Remedy if the counts differ.

    Raises:
        UserError: They differ.
    """
    found = Counter(row["split"] for row in rows)
    if found != Counter(published):
        listed = " / ".join(str(found[split]) for split in published)
        raise UserError(
            f"{source} lists {listed} tracks ({' / '.join(published)}), published are "
            f"{' / '.join(str(count) for count in published.values())}. {advice}",
            code="benchmark-count-mismatch",
        )
