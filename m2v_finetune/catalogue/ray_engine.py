"""Tables computed by a cluster: actors of Ray Data, with a model each, write the shards.

The driver plans as one machine does, and gives actors the ids and paths of the missing tracks, a shard at a
time. An actor reads the audio itself, computes, and writes the file of the shard: so a table is the same,
byte for byte, whoever computed it, and a job may start on a laptop and end on a cluster. If an actor or its
node dies, Ray starts another, which computes the shard anew.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m2v_finetune.catalogue.analysis import Analysis, Row
from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.run import Plan, add_rows
from m2v_finetune.catalogue.shards import TableFolder
from m2v_finetune.catalogue.tracks import track_rows
from m2v_finetune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MAX_WORKERS = 16
"""Greatest number of processes that read audio for a GPU, if none is given."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Size of a cluster.

    Attributes:
        num_actors: One for each GPU; without GPUs for each core.
        gpus_per_actor: 1 or 0.
        cpus_per_actor: Cores of an actor.
    """

    num_actors: int
    gpus_per_actor: int
    cpus_per_actor: int


def connect(num_workers: int | None) -> Cluster:
    """Connect to the cluster that RAY_ADDRESS names or that runs on this machine, else start one here.

    Args:
        num_workers: Processes that read audio, for each actor; if None, as many as the cores of each GPU let
            through, and without GPUs none.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address, or none can be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it sends nothing to other servers
    # Its workers install nothing, and start with the environment of this process.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
        from ray.data import DataContext
    except ImportError as error:
        raise UserError(
            "--engine ray needs the package ray, which is not installed. Install the extra, on each machine: "
            "pip install 'm2v-finetune[ray]'.",
            code="extra-missing",
        ) from error
    try:
        ray.init(
            ignore_reinit_error=True,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # of this call alone, whose start-up raises plain Exception
        where = os.environ.get("RAY_ADDRESS")
        what = f"reached at RAY_ADDRESS={where}" if where else "started on this machine"
        raise UserError(
            f"A Ray cluster cannot be {what} ({error}). Start one with `ray start --head`, and correct the "
            "address.",
            code="ray-no-cluster",
        ) from error
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    if num_workers is None:
        num_workers = min(MAX_WORKERS, max(0, num_cpus // num_gpus - 1)) if num_gpus else 0
    return Cluster(
        num_actors=num_gpus or max(1, num_cpus // (1 + num_workers)),
        gpus_per_actor=int(num_gpus > 0),
        cpus_per_actor=1 + num_workers,
    )


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Computation of the shards of a plan by a cluster; see `run.Engine`.

    Attributes:
        build: Function that builds the analysis in an actor; it has to be importable on each machine.
        cluster: Size of the cluster that `connect` found.
    """

    build: Callable[[], Analysis]
    cluster: Cluster

    def __call__(
        self,
        analysis: Analysis,
        folder: TableFolder,
        plan: Plan,
        *,
        batch_size: int,
        num_workers: int,
        advance: Callable[[], None],
    ) -> Iterator[list[Row]]:
        """Yield ``id`` and ``error`` of the new rows of each shard, once its file is written.

        Raises:
            UserError: An actor raised it; the shards that are there are complete.
        """
        import ray
        from ray.data import ActorPoolStrategy

        shards = shards_of(plan)
        if not shards:
            return
        rows = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            ShardActor,
            fn_constructor_args=(self.build, folder, batch_size, self.cluster.cpus_per_actor - 1),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(len(shards), self.cluster.num_actors)),
            num_gpus=self.cluster.gpus_per_actor,
            num_cpus=self.cluster.cpus_per_actor,
        )
        try:
            for row in rows.iter_rows():
                for _ in set(row["ids"]):
                    advance()
                yield [
                    {"id": name, "error": error or None}
                    for name, error in zip(row["ids"], row["errors"], strict=True)
                ]
        except ray.exceptions.RayError as error:
            raise _as_user_error(error, folder) from error


def shards_of(plan: Plan) -> list[dict[str, Any]]:
    """Return the missing tracks of each shard: its number, their ids, and their paths as bytes."""
    shards, first = [], 0
    for shard, count in plan.left.items():
        items = plan.items[first : first + count]
        first += count
        shards.append(
            {
                "shard": shard,
                "ids": [item.id for item in items],
                "paths": [os.fsencode(item.path) for item in items],  # may be no text
            }
        )
    return shards


class ShardActor:
    """Process of a cluster that computes shards.

    Args:
        build: Function that builds the analysis.
        folder: Folder of the table, which the machine of the driver has locked.
        batch_size: Windows of a batch.
        num_workers: Number of processes that read audio.
    """

    def __init__(
        self,
        build: Callable[[], Analysis],
        folder: TableFolder,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self.folder = folder
        self.batch_size = batch_size
        self.num_workers = num_workers
        # Raised by the first call: Ray hides what a constructor raises.
        self.failure: UserError | None = None
        try:
            self.analysis = build()
        except UserError as error:
            self.failure = error
            return
        if self.analysis.identity != folder.metadata["identity"]:
            self.failure = UserError(
                "The models on a machine of the cluster are not those of the machine that started the job. "
                "Give paths of a shared drive, or names and revisions of the Hub.",
                code="ray-other-model",
            )

    def __call__(self, batch: "dict[str, np.ndarray[Any, Any]]") -> dict[str, list[Any]]:
        """Compute and write the shards of a batch; return the ids and errors of their new rows.

        Raises:
            UserError: The models of this machine cannot be loaded, or would give other rows than those of the
                driver; or the disk does not take a shard.
        """
        if self.failure is not None:
            raise self.failure
        written: dict[str, list[Any]] = {"shard": [], "ids": [], "errors": []}
        for shard, ids, paths in zip(batch["shard"], batch["ids"], batch["paths"], strict=True):
            items = [
                Item(str(name), os.fsdecode(path)) for name, path in zip(ids, paths, strict=True)
            ]
            units = [
                (start, min(start + self.batch_size, len(items)))
                for start in range(0, len(items), self.batch_size)
            ]
            rows = [
                row
                for track in track_rows(
                    self.analysis,
                    items,
                    batch_size=self.batch_size,
                    num_workers=self.num_workers,
                    units=units,
                )
                for row in track.rows
            ]
            add_rows(self.folder, int(shard), rows)
            written["shard"].append(int(shard))
            written["ids"].append([row["id"] for row in rows])
            written["errors"].append([row["error"] or "" for row in rows])
        return written


def _as_user_error(error: Exception, folder: TableFolder) -> Exception:
    """Return the `UserError` that an actor raised, if it is the cause; else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return UserError(str(cause), code=cause.code)
        cause = getattr(cause, "cause", None) or cause.__cause__
    where = getattr(folder, "url", folder.path)
    error.add_note(f"The shards that are in {where} are complete: the same command resumes.")
    return error
