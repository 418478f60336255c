"""Writes are whole or absent, locks hold, and a refusal of the system is an exit code."""

import csv
import errno
import fcntl
import hashlib
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermkit import files
from dermkit.errors import DataError, OutputError, UntrustedError, UsageError

KILLS = 40

# Writes numbered versions of one file for ever, and says so after each write that has returned.
ENDLESS_WRITER = """
import sys
from pathlib import Path
from dermkit.files import sha256_bytes, write_text
target, number = Path(sys.argv[1]), int(sys.argv[2])
while True:
    body = str(number) * (200_000 + number % 7 * 50_000)
    write_text(target, f"{number} {sha256_bytes(body.encode())} {body}")
    print(number, flush=True)
    number += 1
"""

HOLDER = """
import sys, time
from pathlib import Path
from dermkit.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def version_of(target: Path) -> int:
    """Return the number of the version in the file; raises where the file is torn."""
    number, digest, body = target.read_text(encoding="utf-8").split(" ")
    assert hashlib.sha256(body.encode()).hexdigest() == digest, "torn"
    return int(number)


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill(process: subprocess.Popen[str]) -> list[str]:
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert not err, err
    return out.splitlines()


def test_the_torn_file_check_sees_a_torn_file(tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.write_text("7 " + hashlib.sha256(b"77777").hexdigest() + " 777")
    with pytest.raises(AssertionError, match="torn"):
        version_of(torn)


def test_a_killed_write_never_tears_a_file_and_never_loses_a_finished_one(tmp_path: Path) -> None:
    target, latest, rng, leftovers = tmp_path / "file.txt", 0, random.Random(0), 0
    for _ in range(KILLS):
        process = start(ENDLESS_WRITER, target, latest + 1)
        assert process.stdout is not None
        assert int(process.stdout.readline()) == latest + 1
        time.sleep(rng.uniform(0.0, 0.03))
        finished = [latest + 1, *map(int, kill(process))]
        latest = version_of(target)
        assert latest in (finished[-1], finished[-1] + 1), "a write that had returned was lost"
        leftovers += len(list(tmp_path.glob(files.TEMP_PREFIX + "*")))
        files.sweep_temp(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert leftovers > 0, "no kill fell inside a write: the campaign proves nothing"


def test_sweep_removes_only_what_killed_writes_left(tmp_path: Path) -> None:
    deep = tmp_path / "run" / "model"
    deep.mkdir(parents=True)
    for folder in (tmp_path, deep):
        (folder / (files.TEMP_PREFIX + "abc.json")).write_text("half")
        (folder / "model.json").write_text("whole")
    assert files.sweep_temp(tmp_path) == 2
    assert files.sweep_temp(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["model.json", "model.json"]


def write_ways(path: Path) -> list[Callable[[], None]]:
    return [
        lambda: files.write_bytes(path, b"new"),
        lambda: files.write_text(path, "new"),
        lambda: files.write_json(path, {"a": 1}, format=1),
        lambda: files.write_rows(path, ["a"], [[1]]),
    ]


@pytest.mark.parametrize("way", range(4))
def test_a_parent_that_is_a_file_is_exit_code_5(tmp_path: Path, way: int) -> None:
    (tmp_path / "parent").write_text("a file")
    with pytest.raises(OutputError, match=r"parent.*cannot be written") as caught:
        write_ways(tmp_path / "parent" / "sub" / "out.txt")[way]()
    assert caught.value.exit_code == 5
    assert caught.value.outcome and caught.value.remedy
    assert (tmp_path / "parent").read_text() == "a file"


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_device_keeps_the_earlier_file_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: int, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "out.txt"
    target.write_text("old")
    monkeypatch.setattr(os, call, full)
    if call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_ways(target)[way]()
    assert caught.value.exit_code == 5
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_system_s_own_full_device_is_named(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        Path("/dev/full").write_bytes(b"x" * 100_000)

    with pytest.raises(OutputError, match=r"out\.bin: cannot be written: No space left on device"):
        files.write_atomically(tmp_path / "out.bin", write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_system_cuts_short_is_never_put_in_place(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            files.write_bytes(target, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_writer_keeps_the_earlier_file(tmp_path: Path) -> None:
    def half(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(target, half)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_keeps_the_ending_and_stands_beside_the_target(tmp_path: Path) -> None:
    seen: list[Path] = []
    files.write_atomically(tmp_path / "new" / "curve.png", lambda temporary: seen.append(temporary))
    assert seen[0].suffix == ".png"
    assert seen[0].parent == tmp_path / "new"
    assert (tmp_path / "new" / "curve.png").stat().st_mode & 0o777 == 0o644


def test_writability_is_refused_before_the_work(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "runs", need_bytes=1)
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(OutputError, match="MB needed"):
        files.check_writable(tmp_path, need_bytes=2**62)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        files.check_writable(tmp_path / "file" / "runs")


def test_a_second_process_is_refused_and_told_who_holds_the_folder_and_since_when(tmp_path: Path) -> None:
    earliest = datetime.now(UTC).replace(microsecond=0)
    first = start(HOLDER, tmp_path)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(OutputError, match=f"in use by process {first.pid} on ") as caught,
            files.lock(tmp_path),
        ):
            pytest.fail("the lock was given twice")
        assert caught.value.exit_code == 5
        host, since = caught.value.message.split(" on ")[1].split(" since ")
        assert host == socket.gethostname()
        assert earliest <= datetime.fromisoformat(since) <= datetime.now(UTC)
    finally:
        kill(first)
    with files.lock(tmp_path):
        assert (tmp_path / ".lock-owner").read_text().startswith(f"{os.getpid()} {socket.gethostname()} ")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("content", "who"),
    [
        (None, "another process"),
        (b"4711", "process 4711"),
        (b"4711 box", "process 4711 on box"),
        (b"", "another process"),
        (b"\xff\n", "process \ufffd"),
    ],
)
def test_an_owner_file_that_is_missing_or_broken_is_read_too(
    tmp_path: Path, content: bytes | None, who: str
) -> None:
    first = start(HOLDER, tmp_path)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    (tmp_path / ".lock-owner").unlink()
    if content is not None:
        (tmp_path / ".lock-owner").write_bytes(content)
    try:
        with pytest.raises(OutputError, match=f"is in use by {who}\n"), files.lock(tmp_path):
            pytest.fail("the lock was given twice")
    finally:
        kill(first)


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path):
        raise ZeroDivisionError
    with files.lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OutputError, match="No locks available"), files.lock(tmp_path):
        pytest.fail("a lock that does not exist was given")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("images/a.jpg", ""),
        ("a b/é.tar.gz", ""),
        ("console.jpg", ""),
        ("com10", ""),
        ("C:/Windows/a.jpg", "an absolute path"),
        ("C:a.jpg", "an absolute path"),
        ("/a.jpg", "an absolute path"),
        ("\\a.jpg", "an absolute path"),
        ("//server/share/a.jpg", "an absolute path"),
        ("..\\a.jpg", "a path that leads out"),
        ("images/..\\../a.jpg", "a path that leads out"),
        ("CON", "a name that Windows reserves"),
        ("images/nul.jpg", "a name that Windows reserves"),
        ("aux .txt/a.jpg", "a name that Windows reserves"),
        ("COM1", "a name that Windows reserves"),
        ("lpt².png", "a name that Windows reserves"),
        ("images./a.jpg", "ends with a dot or a space"),
        ("images/a.jpg ", "ends with a dot or a space"),
        ("images/a.jpg:stream", "a character that Windows does not allow"),
        ("what?.jpg", "a character that Windows does not allow"),
    ],
)
def test_a_path_is_judged_by_the_rules_of_windows_on_every_system(path: str, problem: str) -> None:
    text = files.windows_path_problem(path)
    assert problem in text and bool(problem) == bool(text)
    windows_path = PureWindowsPath(path)
    assert (windows_path.is_absolute() or bool(windows_path.drive or windows_path.root)) == (
        problem == "an absolute path"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_json_never_holds_what_is_not_a_number(tmp_path: Path, value: float) -> None:
    target = tmp_path / "metrics.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(target, {"accuracy": {"value": value}}, format=1)
    assert not target.exists()
    target.write_text(json.dumps({"format": 1, "accuracy": value}))
    with pytest.raises(DataError, match="is not a number"):
        files.read_json(target, format=1, error=DataError)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def encodable(value: Any) -> bool:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "ignore").decode() == json.dumps(
        value, ensure_ascii=False
    )


@given(st.dictionaries(st.text().filter(lambda key: key != "format"), values).filter(encodable))
def test_a_json_reads_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    target = tmp_path_factory.mktemp("json") / "any.json"
    files.write_json(target, value, format=3)
    assert files.read_json(target, format=3) == value
    assert target.read_text(encoding="utf-8").startswith('{\n "format": 3')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ('{"format": 1', "is not JSON"),
        ("\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no `format`"),
        ("{}", "no `format`"),
        ('{"format": "1"}', "no `format`"),
        ('{"format": true}', "no `format`"),
        ('{"format": 1.0}', "no `format`"),
        ('{"format": 2}', "format 2, this dermkit reads format 1"),
        ('{"format": 0}', "format 0, this dermkit reads format 1"),
    ],
)
def test_a_json_that_is_not_dermkit_s_is_refused(tmp_path: Path, text: str, why: str) -> None:
    target = tmp_path / "model.json"
    target.write_text(text)
    with pytest.raises(UntrustedError, match=why) as caught:
        files.read_json(target, format=1, error=UntrustedError)
    assert str(target) in caught.value.message and caught.value.remedy


def test_a_json_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not JSON"):
        files.read_json(tmp_path / "bytes.json", format=1)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        files.read_json(tmp_path / "none.json", format=1)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        files.read_json(tmp_path, format=1)


def test_older_formats_are_migrated_in_order_and_newer_ones_refused(tmp_path: Path) -> None:
    target = tmp_path / "old.json"
    migrations = {
        1: lambda value: {**value, "format": 2, "steps": [*value["steps"], "1 to 2"]},
        2: lambda value: {**value, "format": 3, "steps": [*value["steps"], "2 to 3"]},
    }
    files.write_json(target, {"steps": []}, format=1)
    assert files.read_json(target, format=3, migrations=migrations) == {"steps": ["1 to 2", "2 to 3"]}
    files.write_json(target, {"steps": []}, format=2)
    assert files.read_json(target, format=3, migrations=migrations) == {"steps": ["2 to 3"]}
    for unknown in (0, 4):
        files.write_json(target, {"steps": []}, format=unknown)
        with pytest.raises(UsageError, match=f"format {unknown}, this dermkit reads format 3"):
            files.read_json(target, format=3, migrations=migrations)


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_csv_floats_read_back_to_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float]
) -> None:
    target = tmp_path_factory.mktemp("csv") / "rows.csv"
    files.write_rows(target, ["plain", "numpy"], [[number, np.float64(number)] for number in numbers])
    with target.open(newline="", encoding="utf-8") as stream:
        header, *rows = list(csv.reader(stream))
    assert header == ["plain", "numpy"]
    for row, number in zip(rows, numbers, strict=True):
        assert [float(cell).hex() for cell in row] == [number.hex()] * 2


def test_csv_cells_survive_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    rows = [["a,b", 'say "no"', "two\nlines"], ["", "é", " "]]
    files.write_rows(tmp_path / "rows.csv", ["1", "2", "3"], rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream))[1:] == rows
    assert b"\r" not in (tmp_path / "rows.csv").read_bytes()


def test_hashes_have_known_answers(tmp_path: Path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "empty").touch()
    assert files.sha256_bytes(b"") == files.sha256_file(tmp_path / "empty") == empty
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_fingerprint_sees_values_and_not_key_order() -> None:
    assert files.fingerprint({"a": 1, "b": [1, 2]}) == files.fingerprint({"b": [1, 2], "a": 1})
    different = [files.fingerprint(part) for part in (1, 1.0, "1", True, [1], {"1": 1}, None)]
    assert len(set(different)) == len(different)
    assert files.fingerprint("ab", "c") != files.fingerprint("a", "bc")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.fingerprint(math.nan)


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False), st.text()), max_size=5))
def test_a_table_reads_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    """A lone carriage return inside a cell is what Python 3.11's writer forgets to quote."""
    path = tmp_path_factory.mktemp("rows") / "table.csv"
    files.write_rows(path, ("a\rb", "c", "d"), rows)
    with path.open(newline="", encoding="utf-8") as stream:
        read = list(csv.reader(stream))
    assert read[0] == ["a\rb", "c", "d"]
    assert [(one, float(two), three) for one, two, three in read[1:]] == rows
