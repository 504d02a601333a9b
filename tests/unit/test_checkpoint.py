"""Checkpoints: whole or not there, checked when read, rotated."""

import errno
import os
import resource
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.messages import raises

from m2v_finetune.errors import UserError
from m2v_finetune.files import UNFINISHED, write_atomically, write_files
from m2v_finetune.training import checkpoint
from m2v_finetune.training.checkpoint import (
    RunState,
    checkpoint_bytes,
    copy_trained,
    load_checkpoint,
    save_checkpoint,
)
from m2v_finetune.training.checkpoint_files import (
    BEST_FILE,
    MANIFEST_FILE,
    STATE_FILE,
    checkpoints_in,
    find_checkpoint,
    step_of,
    tidy,
)
from m2v_finetune.training.run_progress import Progress


class Model(torch.nn.Linear):
    """What of a model a checkpoint asks for."""

    def trained_tensors(self):
        return dict(self.state_dict())


def save(folder, step, *, keep=2, size=100):
    torch.manual_seed(step)
    model = Model(size, size)
    return save_checkpoint(
        folder,
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        accelerator=Accelerator(cpu=True),
        run=RunState(
            progress=Progress(step=step, best_values={"f1": step / 3}),
            best=copy_trained(model),
            unlogged_losses=[0.1, step / 7],
            metrics_bytes=step,
            total_steps=9,
            seconds=1.5,
        ),
        keep=keep,
    )


def load(path, *, size=100):
    model = Model(size, size)
    optimizer = torch.optim.AdamW(model.parameters())
    run = load_checkpoint(path, model=model, optimizer=optimizer, accelerator=Accelerator(cpu=True))
    return model, run


def test_what_was_saved_comes_back_and_the_last_ones_stay(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    assert checkpoints_in(tmp_path) == paths[1:]
    assert [step_of(path) for path in paths] == [1, 2, 3]
    assert find_checkpoint(tmp_path) == paths[2]
    for step, path in zip((2, 3), paths[1:], strict=True):
        model, run = load(path)
        torch.manual_seed(step)
        expected = Model(100, 100)
        assert torch.equal(model.weight, expected.weight)
        assert torch.equal(run.best["weight"], expected.weight)
        assert run.progress == Progress(step=step, best_values={"f1": step / 3})
        assert (run.unlogged_losses, run.metrics_bytes) == ([0.1, step / 7], step)
    assert find_checkpoint(tmp_path / "none") is None


def test_another_model_is_refused(tmp_path):
    with raises("checkpoint-other-model"):
        load(save(tmp_path, 1), size=99)


@pytest.mark.parametrize("change", ["other version", "missing key", "another optimizer"])
def test_a_state_that_this_version_did_not_write_is_refused(tmp_path, change):
    path = save(tmp_path, 1)
    state = torch.load(path / STATE_FILE, weights_only=True)
    if change == "other version":
        state["format_version"] += 1
    elif change == "missing key":
        del state["progress"]
    else:
        state["optimizer"]["param_groups"].append({"params": [], "lr": 1.0})
    torch.save(state, path / STATE_FILE)
    with raises("checkpoint-other-version", path):
        load(path)


def test_a_run_that_stops_where_it_has_just_saved_has_its_checkpoint(tmp_path):
    earlier, path = save(tmp_path, 1), save(tmp_path, 2)
    written = (path / STATE_FILE).stat().st_mtime_ns
    assert save(tmp_path, 2) == path
    assert (path / STATE_FILE).stat().st_mtime_ns == written
    assert checkpoints_in(tmp_path) == [earlier, path]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 8
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size - 9)


@pytest.mark.parametrize("name", [STATE_FILE, BEST_FILE, MANIFEST_FILE])
@pytest.mark.parametrize(
    "damage",
    [
        *(flip, truncate, os.unlink, lambda path: os.truncate(path, 0)),
        lambda path: path.write_text(100_000 * "["),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(name, damage, tmp_path, caplog):
    before, last = save(tmp_path, 1), save(tmp_path, 2)
    damage(last / name)
    assert find_checkpoint(tmp_path) == before
    assert any(str(last) in line and name in line for line in caplog.messages)
    tidy(tmp_path, before)
    assert checkpoints_in(tmp_path) == [before]
    assert (tmp_path / f"damaged-{last.name}").is_dir()
    assert save(tmp_path, 2) == last  # reached again
    assert find_checkpoint(tmp_path) == last


def test_copies_and_odd_files_beside_checkpoints_are_left_alone(tmp_path):
    path = save(tmp_path, 1)
    copies = [shutil.copytree(path, f"{path}{name}") for name in (".bak", " (copy)", "-old")]
    assert checkpoints_in(tmp_path) == [path]
    assert find_checkpoint(tmp_path) == path
    (tmp_path / UNFINISHED.format(name="state")).write_text("")  # a file where a folder is made
    (tmp_path / f"damaged-{path.name}").write_text("")
    tidy(tmp_path, None)
    assert (tmp_path / f"damaged-{path.name}").is_dir()
    assert checkpoints_in(tmp_path) == []
    assert all(Path(copy).is_dir() for copy in copies)
    assert not (tmp_path / UNFINISHED.format(name="state")).exists()


def test_every_damaged_byte_of_a_manifest_is_noticed_or_changes_nothing(tmp_path):
    path = save(tmp_path, 1)
    manifest = (path / MANIFEST_FILE).read_bytes()
    noticed = 0
    for location in range(len(manifest)):
        changed = bytearray(manifest)
        changed[location] ^= 1
        (path / MANIFEST_FILE).write_bytes(changed)
        with suppress(UserError):
            find_checkpoint(tmp_path)
            continue
        noticed += 1
    spaces = sum(byte in b" \n" for byte in manifest)
    assert len(manifest) - spaces <= noticed <= len(manifest)


def test_without_a_valid_checkpoint_the_run_does_not_start_again(tmp_path):
    for step in (1, 2):
        flip(save(tmp_path, step) / STATE_FILE)
    with raises("checkpoint-all-damaged", "(2)") as caught:
        find_checkpoint(tmp_path)
    assert "step-00000001" in str(caught.value)
    assert len(checkpoints_in(tmp_path)) == 2


def in_child(do):
    """Run something in a process of its own, and return how that ended."""
    child = os.fork()
    if child == 0:
        try:
            do()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_moment_of_saving_the_last_or_the_new_one_is_valid(tmp_path, monkeypatch):
    """SIGKILL before each call that changes the disk, until there is none left to kill at."""
    changes = {"fsync": os, "mkdir": os, "rename": os, "rmdir": os, "unlink": os}
    found = set()
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        save(folder, 1, keep=1)
        left = number

        def killing(real):
            def call(*arguments, **options):
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return real(*arguments, **options)

            return call

        def save_and_die():
            for name, module in changes.items():
                setattr(module, name, killing(getattr(module, name)))
            save(folder, 2, keep=1)  # noqa: B023

        code = in_child(save_and_die)
        whole = find_checkpoint(folder)
        assert whole is not None
        assert load(whole)[1].progress.step == step_of(whole)
        found.add(step_of(whole))
        tidy(folder, whole)
        assert {path.name for path in folder.iterdir()} == {p.name for p in checkpoints_in(folder)}
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert number > 8
    assert found == {1, 2}


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in its order; it is still done."""
    found = []
    fsync, rename, replace, rmdir = os.fsync, os.rename, os.replace, os.rmdir

    def path_of(number):
        return Path(f"/proc/self/fd/{number}").readlink()

    def name(call, real, which):
        def recorded(*arguments, **options):
            found.append((call, *which(*arguments)))
            return real(*arguments, **options)

        return recorded

    monkeypatch.setattr(os, "fsync", name("fsync", fsync, lambda number: [path_of(number)]))
    for call, real in (("rename", rename), ("replace", replace)):
        monkeypatch.setattr(os, call, name("rename", real, lambda a, b: [Path(a), Path(b)]))
    monkeypatch.setattr(os, "rmdir", name("rmdir", rmdir, lambda path, *_: [Path(path)]))
    return found


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    path = save(tmp_path, 1)
    unfinished = tmp_path / UNFINISHED.format(name=path.name)
    assert calls == [
        *(("fsync", unfinished / name) for name in (STATE_FILE, BEST_FILE, MANIFEST_FILE)),
        ("fsync", unfinished),
        ("rename", unfinished, path),
        ("fsync", tmp_path),
    ]


def test_an_old_checkpoint_loses_its_name_before_its_files(tmp_path, calls):
    old = save(tmp_path, 1, keep=1)
    calls.clear()
    new = save(tmp_path, 2, keep=1)
    aside = tmp_path / UNFINISHED.format(name=old.name)
    renamed = calls.index(("rename", old, aside))
    assert calls.index(("fsync", tmp_path)) < renamed  # the new one is there for good
    assert [call for call in calls if call[0] == "rmdir"] == [calls[-1]]
    assert renamed < len(calls) - 1
    assert calls[-1][1].name in (aside.name, str(aside))
    assert list(tmp_path.iterdir()) == [new]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    path = tmp_path / "results.json"
    write_atomically(path, lambda unfinished: unfinished.write_text("whole"))
    unfinished = tmp_path / UNFINISHED.format(name=path.name)
    assert calls == [("fsync", unfinished), ("rename", unfinished, path), ("fsync", tmp_path)]
    calls.clear()
    write_files(tmp_path, {"a": b"1", "b": b"2"})
    half = {name: tmp_path / UNFINISHED.format(name=name) for name in "ab"}
    assert calls == [
        *(("fsync", file) for file in half.values()),
        *(("rename", file, tmp_path / name) for name, file in half.items()),
        ("fsync", tmp_path),
    ]


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_a_disk_that_takes_no_more_leaves_the_last_one_and_no_litter(share, tmp_path, capfd):
    last = save(tmp_path, 1)
    limit = int((last / STATE_FILE).stat().st_size * share)

    def save_on_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        save(tmp_path, 2)

    assert in_child(save_on_full_disk) == 1
    assert repr(OSError(errno.EFBIG, os.strerror(errno.EFBIG))) in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [last]
    assert find_checkpoint(tmp_path) == last


def test_no_space_is_reported_as_the_disk_states_it(tmp_path, monkeypatch):
    """By /dev/full, in place of each file of a checkpoint."""
    last = save(tmp_path, 1)
    real = checkpoint.write_flushed
    for name in (STATE_FILE, BEST_FILE, MANIFEST_FILE):

        def write(path, content, name=name):
            if path.name == name:
                path.symlink_to("/dev/full")
            return real(path, content)

        monkeypatch.setattr(checkpoint, "write_flushed", write)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            save(tmp_path, 2)
        assert list(tmp_path.iterdir()) == [last]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, lambda unfinished: unfinished.write_text("first"))

    def fail(unfinished):
        unfinished.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text() == "first"


def test_the_bytes_of_a_checkpoint_are_known_before(tmp_path):
    model = Model(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    path = save_checkpoint(
        tmp_path,
        model=model,
        optimizer=optimizer,
        accelerator=Accelerator(cpu=True),
        run=RunState(
            progress=Progress(),
            best=copy_trained(model),
            unlogged_losses=[],
            metrics_bytes=0,
            total_steps=1,
            seconds=1.5,
        ),
        keep=1,
    )
    written = sum(file.stat().st_size for file in path.iterdir())
    assert written <= checkpoint_bytes(model, optimizer) <= 1.1 * written
