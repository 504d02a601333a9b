"""How a command ends: exit codes, one message, no traceback, whatever became of its streams."""

import ast
import errno
import os
import pickle
import re
import subprocess
import sys

import pytest

from m2v_finetune.errors import (
    BROKEN_PIPE_CODE,
    DISK_ERRORS,
    FULL_ERRORS,
    Stopped,
    UserError,
    run_command,
)

START = "import os, sys; from m2v_finetune.errors import *; from m2v_finetune import errors\n"


def run(program, *, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=None, **variables):
    """Run a command in a process of its own, which needs no torch."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", f"{START}{program}"],
        stdout=stdout,
        stderr=stderr,
        preexec_fn=preexec_fn,
        env=environment | variables,
        check=False,
    )


def closed_pipe():
    """Return the writing end of a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "command",
    [
        "print('x', flush=True)",
        "print('x')",
        "print('x' * 100_000)",
        "sys.stdout.write('no end of line')",
        "print('x'); sys.exit(0)",
        "os.write(1, b'x')",
    ],
)
def test_a_reader_that_is_gone_ends_a_command_quietly(command):
    writer = closed_pipe()
    done = run(f"def main():\n    {command}\nrun_command(main)", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE_CODE, b"")
    assert BROKEN_PIPE_CODE == 141


def test_a_table_for_a_reader_that_is_gone():
    writer = closed_pipe()
    done = run(
        "from m2v_finetune.cli.options import TableConsole\n"
        "run_command(lambda: TableConsole().print('x'))",
        stdout=writer,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE_CODE, b"")


def test_help_for_a_reader_that_is_gone():
    for words in (["--help"], ["predict", "--help"], ["--version"]):
        writer = closed_pipe()
        done = run(f"from m2v_finetune.cli import main; main({words})", stdout=writer)
        os.close(writer)
        assert done.stderr == b"", words
        assert done.returncode in (0, BROKEN_PIPE_CODE)  # argparse drops what it cannot print


def test_another_pipe_that_broke_is_a_bug():
    program = """
def main():
    reader, writer = os.pipe()
    os.close(reader)
    os.write(writer, b"x")
run_command(main)
"""
    done = run(program)
    assert done.returncode == 1
    assert b"Traceback" in done.stderr
    assert b"BrokenPipeError" in done.stderr


def test_a_full_disk_behind_standard_output():
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        for command in ("print('x', flush=True)", "print('x')"):
            done = run(f"run_command(lambda: {command})", stdout=full)
            assert done.returncode == 2
            assert done.stderr.startswith(b"error: ")
            assert os.strerror(errno.ENOSPC).encode() in done.stderr
            assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["None", "print('x')"])
def test_without_any_standard_output(command):
    done = run(f"run_command(lambda: {command})", stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_that_nobody_reads_keeps_its_code():
    writer = closed_pipe()
    program = "def main():\n    raise UserError('x')\nrun_command(main)"
    assert run(program, stderr=writer).returncode == 2
    os.close(writer)


def test_an_error_is_reported_where_nobody_reads_the_results():
    writer = closed_pipe()
    program = "def main():\n    print('x')\n    raise UserError('it is damaged')\nrun_command(main)"
    done = run(program, stdout=writer)
    os.close(writer)
    assert done.stderr == b"error: it is damaged\n"
    assert done.returncode == 2


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_a_stream_cannot_show_are_escaped(encoding):
    program = (
        "def main():\n"
        "    print('caf\\udce9 \\u266b')\n"
        "    raise UserError('caf\\udce9 \\u266b')\n"
        "run_command(main)"
    )
    done = run(program, PYTHONIOENCODING=encoding, LC_ALL="C")
    assert done.returncode == 2
    note = "\u266b".encode() if encoding == "utf-8" else b"\\u266b"
    assert done.stdout == b"caf\\udce9 " + note + b"\n"
    assert done.stderr == b"error: caf\\udce9 " + note + b"\n"


@pytest.mark.parametrize(
    "number",
    [*DISK_ERRORS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP],
    ids=errno.errorcode.get,
)
def test_what_a_disk_or_its_owner_refuses_is_one_message(number, capsys):
    def refused():
        raise OSError(number, os.strerror(number), "/some/file")

    with pytest.raises(SystemExit) as ended:
        run_command(refused)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: /some/file")
    assert os.strerror(number) in message
    assert ("Free" in message) == (number in FULL_ERRORS)
    assert "resume" not in message  # which a training run adds


def test_the_notes_of_an_error_of_a_disk_are_its_advice(capsys):
    def refused():
        error = OSError(errno.EACCES, os.strerror(errno.EACCES), "/some/file")
        error.add_note("Then resume with: x")
        raise error

    with pytest.raises(SystemExit):
        run_command(refused)
    assert capsys.readouterr().err.endswith("Then resume with: x\n")


@pytest.mark.parametrize(
    "bug",
    [
        OSError(errno.ENOENT, "No such file or directory", "/some/file"),
        OSError(errno.EINVAL, "Invalid argument"),
        OSError(errno.ENOTDIR, "Not a directory"),  # of no file that it names
        KeyError("x"),
        TypeError("x"),
    ],
    ids=repr,
)
def test_other_exceptions_stay_what_they_are(bug):
    def fail():
        raise bug

    with pytest.raises(type(bug)):
        run_command(fail)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UserError("x"), 2),
        (Stopped(2, "x"), 130),
        (Stopped(15, "x"), 143),
        (KeyboardInterrupt(), 130),
        (SystemExit(0), 0),
        (SystemExit(2), 2),
    ],
    ids=repr,
)
def test_codes(raised, code):
    def end():
        raise raised

    with pytest.raises(SystemExit) as ended:
        run_command(end)
    assert ended.value.code == code


def test_every_error_has_a_code(repository):
    """A code in lower case words wherever an error is made; that of `UserError` itself is none."""
    missing, malformed = [], []
    for path in sorted((repository / "m2v_finetune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if not node.func.id.endswith("Error"):
                continue
            codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            where = f"{path.name}:{node.lineno}"
            if not codes and node.func.id == "UserError":
                missing.append(where)
            for code in codes:
                is_text = isinstance(code, ast.Constant) and isinstance(code.value, str)
                if is_text and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", code.value):
                    malformed.append(f"{where} {code.value}")
    assert missing == []
    assert malformed == []


def test_a_code_survives_another_process():
    error = pickle.loads(pickle.dumps(UserError("message", code="audio-silent")))
    assert (str(error), error.code) == ("message", "audio-silent")
