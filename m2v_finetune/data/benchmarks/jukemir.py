"""Label files of jukemir, which hold splits and labels of several data sets in one format.

A file is a JSON object of clips by identifier. A clip has ``split``, its label ``y`` and ``extra``,
its metadata in the data set.

Source: Castellon et al. 2021, "Codified audio language modeling learns useful representations for
music information retrieval"; p-lambda/jukemir, folder ``metadata`` (MIT licence).
"""

import gzip
import json
from pathlib import Path
from typing import Any

from m2v_finetune.data.benchmarks.benchmark import RemoteFile

SPLITS = {"train": "train", "valid": "validation", "test": "test"}

_FOLDER_URL = (
    "https://raw.githubusercontent.com/p-lambda/jukemir/"
    "241555645682d18fb909775c54014edfc3a03163/metadata/"
)


def label_file(name: str, *, sha256: str) -> RemoteFile:
    """Return the address of a label file, and its location ``labels/NAME.json.gz``."""
    return RemoteFile(
        url=f"{_FOLDER_URL}{name}.json.gz", path=f"labels/{name}.json.gz", sha256=sha256
    )


def read_labels(root: Path, labels: RemoteFile) -> dict[str, dict[str, Any]]:
    """Return the clips of a label file below a root, by identifier and in the order of the file."""
    clips: dict[str, dict[str, Any]] = json.loads(
        gzip.decompress((root / labels.path).read_bytes())
    )
    return clips
