"""Archives of annotations, unpacked safely."""

import lzma
import tarfile
import tempfile
import zlib
from pathlib import Path

from m2v_finetune.errors import UserError

MAX_UNPACKED_BYTES = 256 * 2**20
MAX_UNPACKED_ENTRIES = 100_000


def unpack(
    archive: Path,
    folder: Path,
    *,
    inside: str = "",
    max_bytes: int = MAX_UNPACKED_BYTES,
    max_entries: int = MAX_UNPACKED_ENTRIES,
) -> None:
    """Unpack a tar archive, or one folder of it, unless that was done before.

    The folder is complete or absent. Nothing is written outside it, whatever the archive names.

    Args:
        archive: A tar file, compressed or not.
        folder: Folder for the content; an existing folder is left as it is.
        inside: Folder of the archive to unpack; all of it if empty.
        max_bytes: Largest size to unpack.
        max_entries: Largest number of files, folders and links in the archive, unpacked or not.

    Raises:
        UserError: The archive is damaged, names files outside the folder, is too large, or has no
            such folder; or the folder cannot be written.
    """
    if folder.is_dir():
        return
    advice = f"Delete {archive}, get it again, and run the same command again."
    num_bytes = 0
    try:
        with (
            tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as partial,
            tarfile.open(archive) as tar,
        ):
            content = Path(partial) / "content"
            for number, member in enumerate(tar, start=1):
                if number > max_entries:
                    raise UserError(
                        f"{archive} holds more than {max_entries:,} files, so it is not the archive that "
                        f"belongs there. Nothing was unpacked. {advice}",
                        code="archive-too-large",
                    )
                tarfile.data_filter(member, str(content))
                if inside and not member.name.startswith(f"{inside}/"):
                    continue
                num_bytes += member.size
                if num_bytes > max_bytes:
                    raise UserError(
                        f"{archive} holds more than {max_bytes:,} bytes, so it is not the archive that "
                        f"belongs there. Nothing was unpacked. {advice}",
                        code="archive-too-large",
                    )
                tar.extract(member, content, filter="data")
            if not (content / inside).is_dir():
                raise UserError(
                    f"{archive} has no folder '{inside}'. {advice}", code="archive-missing-folder"
                )
            folder.parent.mkdir(parents=True, exist_ok=True)
            (content / inside).rename(folder)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error}). {advice}", code="archive-unreadable"
        ) from error
