"""Files that are written whole, or not at all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

UNFINISHED = ".{name}.part"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary name, flush it to disk, and give it its name: all or nothing."""
    unfinished = path.with_name(UNFINISHED.format(name=path.name))
    try:
        write(unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together: if the disk does not take all of them, none is there.

    Args:
        folder: Made if needed; files of these names in it are replaced.
        contents: Of each file, by its name.

    Raises:
        OSError: The disk does not take them; it names the file.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = {name: folder / UNFINISHED.format(name=name) for name in contents}
    try:
        for name, content in contents.items():
            try:
                with unfinished[name].open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(folder / name)) from error
        for name, path in unfinished.items():
            path.replace(folder / name)
    except BaseException:
        for path in unfinished.values():
            path.unlink(missing_ok=True)
        if is_new:
            folder.rmdir()
        raise
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
