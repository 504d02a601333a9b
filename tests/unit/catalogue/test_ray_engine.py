"""A table that a cluster computes is that of one machine, byte for byte, also after a kill."""

import contextlib
import json
import os
import pickle
import random
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
    files = [*folder.glob("part-*"), *folder.glob("_catalogue.json")]
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


def start_ray(music, folder: Path, output: str) -> Forked:
    """Start the command that computes the table of the tracks by Ray on this machine."""
    rows = [json.dumps({"id": item.id, "path": item.path}) for item in music]
    (folder / "music.jsonl").write_text("\n".join(rows), encoding="utf-8")
    argv = ["m2v", "embed", "random-small", str(folder / "music.jsonl")]
    argv += ["--output", str(folder / output), "--layer", "0", "--precision", "float16"]
    argv += ["--window-seconds", "0.1", "--batch-size", "2", "--shard-tracks", "2"]
    return Forked([*argv, "--engine", "ray"])


def one_machine(music, folder: Path) -> dict[str, bytes]:
    """Return the files of the same table, computed without Ray."""
    compute(sorted(music), folder / "one", shard_tracks=2)
    expected = contents(folder / "one")
    assert len(expected) > 8
    return expected


def workers_of(running: Forked) -> list[psutil.Process]:
    """Return the processes of the actors of Ray."""
    return [one for one in processes_of(running) if "ShardActor" in " ".join(one.cmdline())]


def processes_of(running: Forked) -> list[psutil.Process]:
    """Return the processes that a command has started; none if it has ended."""
    try:
        return psutil.Process(running.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.exhaustive
def test_a_killed_worker_of_ray_changes_nothing(music, tmp_path):
    """Two workers of a Ray on this machine; one is killed when a third of the shards is there."""
    pytest.importorskip("ray")
    running = start_ray(music, tmp_path, "two")
    expected = one_machine(music, tmp_path)
    killed = None
    while running.poll() is None:
        found = len(list((tmp_path / "two").glob("part-*.parquet")))
        if killed is None and found >= 1:
            [killed, *_] = workers_of(running)
            killed.kill()
            assert found < len(expected) - 2
        time.sleep(0.02)
    assert running.returncode == 0, running.communicate()[1]
    assert killed is not None
    assert contents(tmp_path / "two") == expected


@pytest.mark.exhaustive
def test_ray_killed_at_any_moment_ends_in_the_same_table(music, tmp_path, record_property):
    """Twenty kills at random moments: of the whole command with its cluster, or of one worker of it."""
    pytest.importorskip("ray")
    music = [Item(f"{n} of {one.id}", one.path) for n in range(12) for one in music]
    expected = one_machine(music, tmp_path)
    moments = random.Random(0)
    start_time = time.monotonic()
    running = start_ray(music, tmp_path, "0")
    assert running.wait(timeout=1200) == 0, running.communicate()[1]
    seconds = time.monotonic() - start_time
    assert contents(tmp_path / "0") == expected

    kills = {"command": 0, "worker": 0}
    resumed, table = 0, 1
    running = start_ray(music, tmp_path, "1")
    while sum(kills.values()) < 20:
        # At any time, or when a number of shards is there: most of the time no shard is written yet.
        output = tmp_path / str(table)
        latest = time.monotonic() + moments.random() * seconds
        num_files = moments.choice([0, len(contents(output)) + moments.randint(1, 40)])
        while running.poll() is None and (
            len(contents(output)) < num_files if num_files else time.monotonic() < latest
        ):
            time.sleep(0.01)
        if running.poll() is not None:
            assert running.returncode == 0, running.communicate()[1]
            assert contents(output) == expected
            table += 1
        elif moments.random() < 0.4 and (workers := workers_of(running)):
            moments.choice(workers).kill()
            kills["worker"] += 1
            continue
        else:
            whole = processes_of(running)
            running.kill()
            running.wait()
            for process in whole:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            kills["command"] += 1
            found = contents(output)
            assert {name: expected[name] for name in found} == found
            resumed += 1 < len(found) < len(expected)
        running = start_ray(music, tmp_path, str(table))
    assert running.wait(timeout=1200) == 0, running.communicate()[1]
    assert contents(tmp_path / str(table)) == expected
    record_property("kills", f"{kills}, {table} tables, {resumed} kills with a part of the shards")
    assert min(kills.values()) > 0
    assert resumed > 2
