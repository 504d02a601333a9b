"""A table that a cluster computes is that of one machine, byte for byte, also after a kill."""

import os
import pickle
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from support.forked import Forked
from support.messages import raises

from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.ray_engine import ShardActor, shards_of
from m2v_finetune.catalogue.run import run_catalogue
from m2v_finetune.cli.embed import build_embeddings
from m2v_finetune.data.values import printable

OPTIONS = {"layer": 0, "pool": "track", "precision": "float16", "window_seconds": 0.1}
NUM_SOUNDS = 22


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> list[Item]:
    """Tracks of 0.1 to 0.4 s, one that cannot be read, and one whose name is no UTF-8."""
    folder = tmp_path_factory.mktemp("music")
    items = []
    for number in range(NUM_SOUNDS):
        name = b"caf\xe9.wav" if number == 7 else b"%03d.wav" % number
        path = folder / os.fsdecode(name)
        length = 1600 * (1 + number % 4)
        noise = np.random.default_rng(number).standard_normal(length, dtype=np.float32)
        soundfile.write(folder / "new.wav", 0.3 * noise, 16000, subtype="FLOAT")
        (folder / "new.wav").rename(path)
        items.append(Item(f"track {number}", str(path)))
    (folder / "bad.wav").write_bytes(b"RIFF")
    return sorted([*items, Item("bad", str(folder / "bad.wav"))])


def contents(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("part-*"), folder / "_catalogue.json"]
    return {path.name: path.read_bytes() for path in files}


def compute(items, output: Path, shard_tracks: int = 4, **options):
    analysis = build_embeddings("random-small", OPTIONS)
    return run_catalogue(
        analysis,
        items,
        output,
        batch_size=2,
        num_workers=0,
        shard_tracks=shard_tracks,
        show_progress=False,
        **options,
    )


def actors(analysis, folder, plan, *, batch_size, num_workers, advance, build=None):
    """Give the shards to an actor as Ray does, with all that it gets as bytes."""
    words = (
        build or partial(build_embeddings, "random-small", OPTIONS),
        folder,
        batch_size,
        num_workers,
    )
    actor = ShardActor(*pickle.loads(pickle.dumps(words)))
    for shard in shards_of(plan):
        batch = {"shard": np.array([shard["shard"]])}
        batch |= {name: np.array([shard[name], None], object)[:1] for name in ("ids", "paths")}
        found = actor(batch)
        for name, error in zip(found["ids"][0], found["errors"][0], strict=True):
            advance()
            yield [{"id": name, "error": error or None}]


def test_actors_write_the_shards_of_one_machine(music, tmp_path):
    alone = compute(music, tmp_path / "one")
    assert dict(alone.errors) == {"audio-unreadable": 1}
    found = compute(music, tmp_path / "two", engine=actors)
    assert (found.num_computed, found.errors) == (NUM_SOUNDS + 1, alone.errors)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    # A job that began on one machine ends on the cluster.
    (tmp_path / "two" / "part-00001.parquet").unlink()
    again = compute(music, tmp_path / "two", engine=actors)
    assert 0 < again.num_computed < len(music)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    (tmp_path / "two" / "part-00001.parquet").unlink()
    other = partial(build_embeddings, "random-small", OPTIONS | {"layer": 1})
    with raises("ray-other-model"):
        compute(music, tmp_path / "two", engine=partial(actors, build=other))


@pytest.mark.exhaustive
def test_a_killed_worker_of_ray_changes_nothing(music, tmp_path):
    """Two workers of a Ray on this machine; one is killed when a third of the shards is there."""
    pytest.importorskip("ray")
    (tmp_path / "list").write_bytes(b"".join(os.fsencode(item.path) + b"\n" for item in music))

    argv = ["m2v", "embed", "random-small", "-", "--output", str(tmp_path / "two")]
    argv += ["--layer", "0", "--precision", "float16", "--window-seconds", "0.1"]
    argv += ["--batch-size", "2", "--shard-tracks", "2", "--engine", "ray"]
    with (tmp_path / "list").open("rb") as file:
        running = Forked(argv, input=file)
    named = sorted(Item(printable(item.path), item.path) for item in music)
    compute(named, tmp_path / "one", shard_tracks=2)
    expected = contents(tmp_path / "one")
    assert len(expected) > 8

    killed = None
    while running.poll() is None:
        found = len(list((tmp_path / "two").glob("part-*.parquet")))
        if killed is None and found >= 1:
            workers = [
                one
                for one in psutil.Process(running.pid).children(recursive=True)
                if "ShardActor" in " ".join(one.cmdline())
            ]
            assert workers
            killed = workers[0]
            killed.kill()
            assert found < len(expected) - 2
        time.sleep(0.02)
    assert running.returncode == 0, running.communicate()[1]
    assert killed is not None
    assert contents(tmp_path / "two") == expected
