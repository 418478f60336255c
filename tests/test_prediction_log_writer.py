"""The writer of the prediction log: whatever ends or is away, no acknowledged row is missing or twice there."""

import os
import random
import re
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermkit.errors import OutputError
from dermkit.prediction_log import writer
from dermkit.prediction_log.database import LogUnavailable, parse_address
from dermkit.prediction_log.outbox import Outbox
from dermkit.prediction_log.read import read_log
from dermkit.prediction_log.verify import verify_log
from dermkit.prediction_log.writer import default_outbox, open_log
from prediction_log_tools import (
    kill_writer,
    locked,
    nowhere_to_write,
    prediction_row,
    random_seconds,
    start_writer,
)

LOG_KEY = "ab" * 8


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "DATABASE_RETRY_SECONDS", 0.02)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log.sqlite")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def ids_of(path: str) -> list[str]:
    return [prediction.row.row_id for prediction in read_log(path)]


def check_acknowledged(path: str, acknowledged: list[str]) -> int:
    """Check that every acknowledged row is in the log once, and that the chain holds; returns the rows of the log."""
    counts = Counter(ids_of(path))
    assert set(acknowledged) - counts.keys() == set(), "an acknowledged row is missing"
    assert max(counts.values(), default=1) == 1, "a row is there twice"
    return verify_log(path).n_rows


# Threads --------------------------------------------------------------------------------------------------------


def test_threads_share_commits_and_each_request_stays_together(path: str) -> None:
    with open_log(path) as log, ThreadPoolExecutor(8) as pool:
        requests = [[prediction_row(10 * n + k, position=k) for k in range(3)] for n in range(40)]
        ids = list(pool.map(log.append, requests))
        status = log.status
    assert ids == [[row.row_id for row in rows] for rows in requests]
    assert (status.n_rows, status.n_outbox) == (120, 0) and 0 < status.n_commits <= 40 and status.seconds > 0
    row_ids = ids_of(path)
    assert sorted(row_ids) == sorted(row_id for request in ids for row_id in request)
    positions = [row_ids.index(request[0]) for request in ids]
    assert all(row_ids[first : first + 3] == request for first, request in zip(positions, ids, strict=True))
    assert verify_log(path).n_rows == 120


def test_a_row_that_is_given_again_is_written_once(path: str) -> None:
    row = prediction_row()
    with open_log(path) as log:
        assert log.append([row]) == [row.row_id] and log.append([row, row]) == [row.row_id] * 2
        assert log.append([]) == []
    assert ids_of(path) == [row.row_id]


def test_who_goes_away_does_not_stop_the_writer(path: str) -> None:
    with open_log(path, timeout=0.2) as log:
        with locked(path):
            futures = [log.submit([prediction_row(number)]) for number in range(20)]
            cancelled = sum(future.cancel() for future in futures)
            assert cancelled
        assert log.append([prediction_row(99)])
    assert len(ids_of(path)) == 21


def test_a_closed_log_takes_nothing(path: str) -> None:
    log = open_log(path)
    log.append([prediction_row()])
    log.close()
    log.close()
    with pytest.raises(LogUnavailable, match="was closed"):
        log.append([prediction_row()])


# The outbox -----------------------------------------------------------------------------------------------------


def test_while_the_database_is_away_the_outbox_takes_rows_in_order(path: str) -> None:
    with open_log(path, timeout=0.05) as log:
        ids = log.append([prediction_row(0)])
        with locked(path):
            for number in range(1, 6):
                ids += log.append([prediction_row(number)])
            assert log.status.n_outbox == 5 and not log.status.is_database_up
            assert "takes no rows" in log.status.problem
        wait_until(lambda: log.status.n_outbox == 0)
        ids += log.append([prediction_row(7)])
        wait_until(lambda: log.status.is_database_up)
    assert ids_of(path) == ids
    assert list(default_outbox(parse_address(path)).iterdir()) == []
    assert verify_log(path).n_rows == 7


def test_new_rows_wait_behind_those_in_the_outbox(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "DATABASE_RETRY_SECONDS", 1000.0)
    with open_log(path, timeout=0.05) as log:
        with locked(path):
            ids = log.append([prediction_row(0)])
        ids += log.append([prediction_row(1)])
        assert log.status.n_outbox == 2, "the database is back, and older rows are not in it yet"
    monkeypatch.setattr(writer, "DATABASE_RETRY_SECONDS", 0.02)
    with open_log(path) as log:
        wait_until(lambda: log.status.n_outbox == 0)
    assert ids_of(path) == ids


def test_a_moved_database_is_not_begun_anew(path: str) -> None:
    with open_log(path) as log:
        ids = log.append([prediction_row(0)])
        for suffix in ("", "-wal", "-shm"):
            Path(path + suffix).rename(path + ".away" + suffix)
        ids += log.append([prediction_row(1)])
        assert not Path(path).exists() and log.status.n_outbox == 1
        for suffix in ("", "-wal", "-shm"):
            Path(path + ".away" + suffix).rename(path + suffix)
        wait_until(lambda: log.status.n_outbox == 0)
    assert ids_of(path) == ids


def test_the_next_start_takes_what_waits(path: str) -> None:
    with open_log(path, timeout=0.05) as log:
        log.append([prediction_row(0)])
        with locked(path):
            waiting = log.append([prediction_row(1), prediction_row(2)])
            log.close()
    assert ids_of(path)[1:] == []
    with open_log(path) as log:
        assert log.status.n_outbox == 2
        last = log.append([prediction_row(3)])
        wait_until(lambda: log.status.n_outbox == 0)
    assert ids_of(path)[1:] == waiting + last


def test_rows_that_reached_the_database_before_a_kill_are_not_written_again(tmp_path: Path, path: str) -> None:
    rows = [prediction_row(number) for number in range(5)]
    with open_log(path) as log:
        log.append(rows[:3])
    box = Outbox(default_outbox(parse_address(path)), parse_address(path).key)
    box.append([row.columns() for row in rows])  # as if it was killed after three of them
    box.close()
    with open_log(path) as log:
        wait_until(lambda: log.status.n_outbox == 0)
    assert ids_of(path) == [row.row_id for row in rows]


def test_without_database_and_outbox_nothing_is_acknowledged(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with open_log(path, timeout=0.05) as log:
        with locked(path), monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(LogUnavailable, match="neither the database nor the outbox takes rows"):
                log.append([prediction_row(0)])
            assert log.status.is_silent
            with pytest.raises(LogUnavailable):
                log.append([prediction_row(0)])
            assert caplog.text.count("requests get no answer") == 1
        with locked(path):
            ids = log.append([prediction_row(1)])
        wait_until(lambda: not log.status.n_outbox)
    assert ids_of(path) == ids


def test_without_a_request_the_writer_learns_that_nothing_can_be_written(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.05)
    with open_log(path, timeout=0.05) as log:
        ids = log.append([prediction_row(0)])
        with nowhere_to_write(path):
            wait_until(lambda: log.status.is_silent)
            time.sleep(0.2)
            assert log.status.is_silent and caplog.text.count("requests get no answer") == 1
        wait_until(lambda: not log.status.is_silent)
        ids += log.append([prediction_row(1)])
    assert ids_of(path) == ids and verify_log(path).n_rows == 2, "a probe leaves no row and breaks no chain"
    assert list(default_outbox(parse_address(path)).iterdir()) == []


def test_a_log_whose_outbox_takes_rows_is_not_silent(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.02)
    with open_log(path, timeout=0.05) as log, locked(path):
        wait_until(lambda: not log.status.is_database_up)
        time.sleep(0.2)
        assert not log.status.is_silent, "the folder takes a file"
        ids = log.append([prediction_row(0)])
        time.sleep(0.2)
        assert not log.status.is_silent, "the file that is open takes a block"
        ids += log.append([prediction_row(1)])
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        wait_until(lambda: log.status.is_silent)
        monkeypatch.undo()
        wait_until(lambda: not log.status.is_silent)
        log.close()
    with open_log(path) as log:
        wait_until(lambda: log.status.n_outbox == 0)
        assert log.status.n_damaged == 0, "probes are no lines"
    assert ids_of(path) == ids


def test_an_outbox_that_cannot_be_written_is_said_at_the_start(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        open_log(path, tmp_path / "file")


def _only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.rows")
    return path


@settings(max_examples=40)
@given(cut=st.integers(0, 10_000), tail=st.sampled_from([b"", b"\0" * 64, b"ab cd"]))
def test_wherever_a_write_was_cut_off_the_rows_before_it_are_read(
    outbox_bytes: bytes, cut: int, tail: bytes
) -> None:
    ends = [0, *(match.end() for match in re.finditer(b"\n", outbox_bytes))]
    cut = cut % (len(outbox_bytes) + 1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{LOG_KEY}-1.rows").write_bytes(outbox_bytes[:cut] + tail)
        box = Outbox(Path(folder), LOG_KEY)
        rows = box.read(10)
        assert [row["request_id"] for row in rows] == [
            f"request-{n}" for n in range(sum(end <= cut for end in ends) - 1)
        ]
        assert box.read(10) == [] and box.remove_first() == 0 and not box, (
            "what was cut off was never acknowledged"
        )


@pytest.fixture(scope="module")
def outbox_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("outbox")
    box = Outbox(folder, LOG_KEY)
    box.append([prediction_row(number).columns() for number in range(4)])
    box.close()
    return _only_file(folder).read_bytes()


def test_a_damaged_line_is_counted_and_its_file_is_set_aside(tmp_path: Path, path: str) -> None:
    folder = default_outbox(parse_address(path))
    box = Outbox(folder, parse_address(path).key)
    rows = [prediction_row(number) for number in range(4)]
    box.append([row.columns() for row in rows])
    box.close()
    file = _only_file(folder)
    file.write_bytes(file.read_bytes().replace(b"request-1", b"request-X"))
    with open_log(path) as log:
        wait_until(lambda: log.status.n_damaged == 1)
    assert ids_of(path) == [rows[number].row_id for number in (0, 2, 3)]
    assert [one.suffix for one in folder.iterdir()] == [".damaged"]


def test_a_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    first = Outbox(tmp_path, LOG_KEY)
    first.append([prediction_row(0).columns()])
    second = Outbox(tmp_path, LOG_KEY)
    assert first and not second
    first.close()
    second.take_over()
    assert second.n_waiting == 1 and len(second.read(10)) == 1
    second.close()


def test_rows_of_another_log_are_left_alone_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, first, second = tmp_path / "outbox", str(tmp_path / "a.sqlite"), str(tmp_path / "b.sqlite")
    with open_log(first, folder, timeout=0.05) as log, locked(first):
        ids = log.append([prediction_row(0)])
        log.close()
    with open_log(second, folder) as log:
        assert log.status.n_outbox == 0
        log.append([prediction_row(1)])
    assert ids[0] not in ids_of(second) and "1 files hold rows of other logs" in caplog.text
    with open_log(first, folder) as log:
        wait_until(lambda: log.status.n_outbox == 0)
    assert ids_of(first) == ids


def test_each_log_has_a_key_of_its_own_without_its_password() -> None:
    urls = [f"postgresql://{rest}" for rest in ("h/a", "h/b", "i/a", "h:5433/a", "/a?host=i2")]
    assert len({parse_address(url).key for url in [*urls, "a", "b"]}) == 7
    same = ("postgresql://h:5432/a", "postgres://u:secret@h/a", "postgresql://v@h/a?password=x")
    assert {parse_address(url).key for url in same} == {parse_address(urls[0]).key}
    assert default_outbox(parse_address(urls[0])) != default_outbox(parse_address(urls[1]))


def test_no_password_of_a_url_is_named() -> None:
    for url in (
        "postgresql://u:SECRET@h/a",
        "postgresql://u@h/a?password=SECRET",
        "postgresql://h/a?sslpassword=SECRET",
    ):
        assert "SECRET" not in parse_address(url).name


@pytest.mark.skipif(os.name != "posix", reason="modes as POSIX has them")
def test_only_its_owner_reads_an_outbox(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox", LOG_KEY)
    box.append([prediction_row(0).columns()])
    assert {file.stat().st_mode & 0o777 for file in box.folder.iterdir()} == {0o600}
    assert box.folder.stat().st_mode & 0o777 == 0o700
    box.close()


def test_rows_of_a_process_that_ended_reach_the_log_without_a_new_start(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "TAKE_OVER_SECONDS", 0.02)
    address = parse_address(path)
    with open_log(path) as log:
        box = Outbox(default_outbox(address), address.key)
        box.append([prediction_row(0).columns()])
        time.sleep(0.1)
        assert log.status.n_outbox == 0, "its process lives"
        box.close()
        wait_until(lambda: len(ids_of(path)) == 1)
        wait_until(lambda: log.status.n_outbox == 0)


def test_under_steady_load_the_outbox_is_emptied(path: str) -> None:
    stop = threading.Event()
    ids: list[str] = []

    def write(log: writer.PredictionLog) -> None:
        while not stop.is_set():
            ids.extend(log.append([prediction_row(0)]))

    with open_log(path, timeout=0.05) as log, ThreadPoolExecutor(4) as pool:
        try:
            with locked(path):
                for _ in range(4):
                    pool.submit(write, log)
                wait_until(lambda: log.status.n_outbox > 20)
            wait_until(lambda: log.status.n_outbox == 0 and not any(default_outbox(log.address).glob("*.rows")))
        finally:
            stop.set()
    check_acknowledged(path, ids)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors as Linux lists them")
def test_failed_writes_leave_no_descriptor_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(tmp_path / "outbox", LOG_KEY)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for _ in range(5):
            with pytest.raises(OutputError, match="No space"):
                box.append([prediction_row(0).columns()])
    assert len(list(Path("/proc/self/fd").iterdir())) == before and not box and list(box.folder.iterdir()) == []


def test_a_failed_flush_is_followed_by_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(tmp_path, LOG_KEY)
    rows = [prediction_row(number).columns() for number in range(3)]
    box.append(rows[:1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(OutputError, match="I/O error"):
            box.append(rows[1:2])
    box.append(rows[2:])
    assert len(list(tmp_path.glob("*.rows"))) == 2
    assert box.read(10) == rows[:1] and box.read(10) == [] and box.remove_first() == 0
    assert box.read(10) == rows[2:]
    box.close()


# Kills ----------------------------------------------------------------------------------------------------------


def run_kills(path: str, n_kills: int, seed: int, *, writers: int = 2, outages: bool = True) -> int:
    """Kill writers again and again, some while the database is away; returns how many rows were acknowledged."""
    generator = random.Random(seed)
    open_log(path).close()
    outbox = default_outbox(parse_address(path))
    acknowledged: list[str] = []
    for kill in range(0, n_kills, writers):
        processes = [start_writer(path, f"{kill}-{n}", outbox, timeout=0.05, rows_per_request=generator.choice((1, 3)))
                     for n in range(writers)]  # fmt: skip
        stop = threading.Event()
        outage = threading.Thread(target=_lock_now_and_then, args=(path, stop, generator.random()))
        if outages:
            outage.start()
        for process in processes:
            acknowledged += kill_writer(process, random_seconds(generator))
        stop.set()
        if outages:
            outage.join()
    with open_log(path) as log:
        wait_until(lambda: log.status.n_outbox == 0)
    assert check_acknowledged(path, acknowledged) >= len(acknowledged)
    return len(acknowledged)


def _lock_now_and_then(path: str, stop: threading.Event, seed: float) -> None:
    """Take the database away for moments, longer than a writer waits."""
    generator = random.Random(seed)
    while not stop.is_set():
        try:
            with locked(path):
                stop.wait(generator.uniform(0.0, 0.3))
        except sqlite3.OperationalError:  # a writer holds it
            pass
        stop.wait(generator.uniform(0.0, 0.1))


def test_no_acknowledged_row_is_lost_or_doubled_by_kills(path: str) -> None:
    assert run_kills(path, 4, seed=1) > 0


@pytest.mark.slow
def test_two_hundred_kills(path: str) -> None:
    assert run_kills(path, 200, seed=2) > 500


def test_a_lost_row_would_be_noticed(path: str) -> None:
    with open_log(path) as log:
        ids = log.append([prediction_row(0)])
    with pytest.raises(AssertionError, match="missing"):
        check_acknowledged(path, [*ids, "0" * 32])
