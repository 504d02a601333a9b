"""Folder of a table in an object store, such as ``s3://bucket/prefix``.

A shard is written here and put into the store complete: objects are replaced at once or not at all. Stores
have no locks: see that one command at a time writes a table.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from m2v_finetune.catalogue.analysis import Analysis, Row
from m2v_finetune.catalogue.shards import FORMATS, TableFolder, table_metadata, unreadable_shard
from m2v_finetune.catalogue.stores import open_store, renamed_errors, store_errors
from m2v_finetune.data.feature_tables import CATALOGUE_FILE


@dataclass(frozen=True, kw_only=True)
class RemoteFolder(TableFolder):
    """Table in a store; `path` is for names of files alone.

    Attributes:
        url: Address of the table.
    """

    url: str

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> list[Row]:
        """Return rows of a shard; of Parquet only the bytes of the columns are fetched.

        Raises:
            UserError: The file cannot be read.
        """
        system, root = open_store(self.url)
        remote = f"{root.rstrip('/')}/{self.file(shard).name}"
        with store_errors(self.url):
            if not system.exists(remote):
                return []
            if self.format == "parquet":
                from pyarrow import parquet

                with system.open(remote, "rb") as file:
                    try:
                        with parquet.ParquetFile(file) as opened:
                            self.require_own_schema(opened.schema_arrow)
                            rows: list[Row] = opened.read(columns=columns).to_pylist()
                        self.check_rows(shard, rows, columns)
                    except (ValueError, KeyError, TypeError) as error:  # the store raises others
                        raise unreadable_shard(system.unstrip_protocol(remote), error) from error
                return rows
        with self._staged() as staged:
            with store_errors(self.url):
                system.get_file(remote, str(staged.file(shard)))
            return staged.read_shard(shard, columns)

    def write_shard(self, shard: int, rows: Sequence[Row]) -> None:
        """Put the rows of a shard, sorted by id, into the store.

        Raises:
            UserError: The store does not take it.
        """
        system, root = open_store(self.url)
        with self._staged() as staged:
            staged.write_shard(shard, rows)
            with store_errors(self.url):
                file = staged.file(shard)
                system.put_file(str(file), f"{root.rstrip('/')}/{file.name}")

    @contextmanager
    def _staged(self) -> Iterator[TableFolder]:
        """Give a folder of this machine for one file of the table, deleted at the end."""
        with TemporaryDirectory(prefix="m2v-") as name, renamed_errors(name, self.url):
            yield TableFolder(
                path=Path(name),
                format=self.format,
                num_shards=self.num_shards,
                schema=self.schema,
                metadata=self.metadata,
            )


@contextmanager
def open_remote(
    url: str, analysis: Analysis, *, format: str, num_shards: int, overwrite: bool
) -> Iterator[RemoteFolder]:
    """Give a table in a store, new or of the same identity; arguments are those of `shards.open_folder`.

    Raises:
        UserError: There is another table, or other files; or the store cannot be written.
    """
    system, root = open_store(url)
    root = root.rstrip("/")
    with store_errors(url):
        names = sorted(Path(one).name for one in system.ls(root)) if system.exists(root) else []
        if overwrite and CATALOGUE_FILE in names:
            own = [
                name
                for name in names
                if name.startswith("part-") and name.rpartition(".")[2] in FORMATS
            ]
            for name in (*own, CATALOGUE_FILE):  # it marks a table: deleted last
                system.rm_file(f"{root}/{name}")
            names = [name for name in names if name not in own and name != CATALOGUE_FILE]
    with TemporaryDirectory(prefix="m2v-") as folder, renamed_errors(folder, url):
        file = Path(folder) / CATALOGUE_FILE
        with store_errors(url):
            if CATALOGUE_FILE in names:
                system.get_file(f"{root}/{CATALOGUE_FILE}", str(file))
            elif names:
                (Path(folder) / names[0]).touch()  # which is refused as in a folder of this machine
        metadata = table_metadata(Path(folder), analysis, format=format, num_shards=num_shards)
        with store_errors(url):
            if CATALOGUE_FILE not in names:
                system.put_file(str(file), f"{root}/{CATALOGUE_FILE}")
    yield RemoteFolder(
        path=Path(url),
        url=url,
        format=format,
        num_shards=metadata["num_shards"],
        schema=analysis.schema,
        metadata=metadata,
    )
