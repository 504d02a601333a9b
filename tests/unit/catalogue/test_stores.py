"""Audio and tables in an object store: an S3 server on the loopback."""

import json

import numpy as np
import pytest
import s3fs
import soundfile
from moto.server import ThreadedMotoServer
from pyarrow import parquet
from support import messages
from support.messages import raises

from m2v_finetune import cli

NUM_SOUNDS = 9


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Sounds in a folder and its album; one that cannot be read, and one that is no audio."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "album").mkdir()
    for number in range(NUM_SOUNDS):
        path = folder / ("album" if number % 3 == 0 else ".") / f"{number}.wav"
        noise = np.random.default_rng(number).normal(scale=0.1, size=1600 * (1 + number % 4))
        soundfile.write(path, noise, 16000)
    (folder / "bad.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture
def store(music, monkeypatch):
    """The same files as s3://catalogue/music, in a server of this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem(use_listings_cache=False)
        system.mkdir("catalogue")
        system.put(f"{music}/", "catalogue/music/", recursive=True)
        yield system
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def embed(source, output, *words, layer=0):
    options = ["--layer", layer, "--window-seconds", 0.1, "--shard-tracks", 3, "--num-workers", 0]
    argv = ["embed", "random-small", source, "--output", output, *options, *words]
    arguments = cli.build_parser().parse_args(list(map(str, argv)))
    arguments.command(arguments)


@pytest.mark.slow
def test_audio_and_tables_of_a_store_are_those_of_a_disk(music, store, tmp_path, capsys):
    embed(music, tmp_path / "local")
    capsys.readouterr()
    embed("s3://catalogue/music", "s3://catalogue/tables/one")
    stderr = capsys.readouterr().err
    assert messages.names(stderr, 1)
    assert f"{NUM_SOUNDS + 1} computed now" in stderr
    names = sorted(path.name for path in (tmp_path / "local").glob("part-*"))
    assert len(names) > 2
    found = {path.rpartition("/")[2] for path in store.find("catalogue/tables/one")}
    assert found == {*names, "_catalogue.json"}

    def rows_of(name):
        with store.open(f"catalogue/tables/one/{name}") as file:
            return parquet.read_table(file).to_pylist()

    for name in names:
        expected = parquet.read_table(tmp_path / "local" / name).to_pylist()
        for row in expected:  # the same but for the address
            address = f"s3://catalogue/music/{row['id']}"
            row["error"] = row["error"] and row["error"].replace(row["path"], address)
            row["path"] = address
        assert rows_of(name) == expected
    assert json.loads(store.cat("catalogue/tables/one/_catalogue.json")) == json.loads(
        (tmp_path / "local" / "_catalogue.json").read_text()
    )

    # A shard that is missing is computed, and no other.
    before = store.cat(f"catalogue/tables/one/{names[1]}")
    num_lost = len(rows_of(names[1]))
    store.rm_file(f"catalogue/tables/one/{names[1]}")
    embed("s3://catalogue/music", "s3://catalogue/tables/one")
    assert messages.names(capsys.readouterr().err, num_lost, NUM_SOUNDS + 1 - num_lost)
    assert store.cat(f"catalogue/tables/one/{names[1]}") == before
    store.pipe_file(f"catalogue/tables/one/{names[1]}", before[:-100])
    with raises("catalogue-shard-unreadable", f"s3://catalogue/tables/one/{names[1]}"):
        embed("s3://catalogue/music", "s3://catalogue/tables/one")
    with raises("catalogue-other-table", "s3://catalogue/tables/one", "layer"):
        embed("s3://catalogue/music", "s3://catalogue/tables/one", layer=1)
    embed("s3://catalogue/music", "s3://catalogue/tables/one", "--overwrite", layer=1)
    with raises("catalogue-folder-not-empty", "s3://catalogue/music"):
        embed("s3://catalogue/music", "s3://catalogue/music")
    with raises("catalogue-source-missing", "s3://catalogue/nothing"):
        embed("s3://catalogue/nothing", "s3://catalogue/tables/two")
    with raises("store-unreachable", "s3://elsewhere"):
        embed("s3://catalogue/music", "s3://elsewhere/table")


def test_an_address_that_no_library_reads(tmp_path):
    with raises("store-unreachable", "nostore://"):
        embed("nostore://bucket", tmp_path / "table")
