"""Object stores, such as ``s3://bucket/prefix``, by fsspec: tracks, and copies of their files to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from m2v_finetune.catalogue.items import Item
from m2v_finetune.data.folders import is_audio
from m2v_finetune.data.values import printable
from m2v_finetune.errors import AudioError, Stopped, UserError

EXTRAS = {"s3": "pip install 'm2v-finetune[s3]'"}


def is_url(name: str) -> bool:
    """Return whether a name is an address of an object store.

    >>> is_url("s3://bucket/song.mp3"), is_url("music/song.mp3")
    (True, False)
    """
    return "://" in name


def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    Listings are not kept: other processes write to the same store.

    Raises:
        UserError: There is no library for the address, or it has no such store.
    """
    import fsspec

    scheme = url.split("://")[0]
    try:
        with store_errors(url):
            system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except UserError as error:
        if isinstance(error.__cause__, ImportError):
            how = EXTRAS.get(scheme, f"the package of fsspec for {scheme}://")
            raise UserError(
                f"{url} needs a library that is not installed ({error.__cause__}). Install it: {how}.",
                code="extra-missing",
            ) from error
        raise
    return system, str(path)


def remote_items(url: str, notes: list[str]) -> Iterator[Item]:
    """Yield the audio file of an address, or all audio below it, with the path below it as id.

    Args:
        url: Address.
        notes: List that takes a line about files that are not read.

    Raises:
        UserError: There is nothing, or the store cannot be read.
    """
    system, root = open_store(url)
    with store_errors(url):
        files = sorted(system.find(root))
    if not files:
        raise UserError(
            f"There is no file at {url}. Check the bucket and the prefix, and the rights to list it.",
            code="catalogue-source-missing",
        )
    num_others = 0
    for file in files:
        name = file.removeprefix(root.rstrip("/")).lstrip("/")
        if not is_audio(file) or any(part.startswith(".") for part in PurePosixPath(name).parts):
            num_others += 1
            continue
        yield Item(printable(name or url), system.unstrip_protocol(file))
    if num_others:
        notes.append(f"{url}: {num_others:,} files not read, which are no audio by their names")


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Give the path of a file to read: its own, or of an address that of a copy, deleted at the end.

    Raises:
        AudioError: The file cannot be fetched. Errors of the block name the address, not the copy.
    """
    if not is_url(path):
        yield path
        return
    with TemporaryDirectory(prefix="m2v-") as folder:
        copy = Path(folder) / PurePosixPath(path).name
        try:
            system, remote = open_store(path)
            with store_errors(path):
                system.get_file(remote, str(copy))
        except UserError as error:
            raise AudioError(str(error), code=error.code) from error
        with renamed_errors(str(copy), path):
            yield str(copy)


@contextmanager
def renamed_errors(path: str, name: str) -> Iterator[None]:
    """Name an address in place of a path in the messages of `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(path, name), code=error.code) from error


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn any error of a store into a `UserError` that names the address.

    Libraries of stores raise errors of their own beside `OSError`.
    """
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{url} cannot be read or written ({reason}). Check the address, the credentials and the "
            "network. Of S3 these are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL of a "
            "server that is not Amazon's.",
            code="store-unreachable",
        ) from error
