"""Files of a prepared data set, each complete or absent."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2v_finetune.data.manifest import DATASET_INFO_NAME, DatasetInfo
from m2v_finetune.errors import UserError
from m2v_finetune.files import write_atomically


def write_manifest(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSONL; the file is complete or absent.

    Raises:
        UserError: The file cannot be written.
    """
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_file(path, "".join(lines).encode())


def write_dataset_info(folder: Path, info: DatasetInfo) -> None:
    """Write ``dataset.json``, which `read_dataset_info` reads, beside the manifests of a folder.

    Raises:
        UserError: The file cannot be written.
    """
    content = json.dumps(asdict(info), ensure_ascii=False, indent=2) + "\n"
    write_file(folder / DATASET_INFO_NAME, content.encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file below the root of a data set; its folder is made if needed.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda unfinished: unfinished.write_bytes(content))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Check the disk space and the rights of "
            "the folder, or choose another root.",
            code="benchmark-not-writable",
        ) from error
