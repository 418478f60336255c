"""What one client holds costs the others nothing: threads, places in the queue, checks of keys, the server's end."""

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dermkit.errors import OutputError
from dermkit.prediction_log.outcomes import OutcomesAdded
from dermkit.prediction_log.writer import open_log
from dermkit.serving import feedback, key_file
from dermkit.serving.auth import KeyGuard, KeyRing
from dermkit.serving.feedback import OutcomeWriter
from dermkit.serving.jobs import ImageJob, Job, WorkerRefusal
from dermkit.serving.key_file import ApiKey, make_key
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.rules import Scope
from dermkit.serving.scoring_queue import ScoringQueue
from dermkit.serving.settings import ServeLimits, ServeSettings
from dermkit.serving.worker import silence_stderr
from dermkit.serving.worker_process import Deliver, WorkerLost, WorkerProcess
from server_parts import QuickWorker, form, open_server, run


async def hold_default_threads(release: threading.Event) -> None:
    """Let the one thread that asyncio lends wait for a test's end."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    loop.run_in_executor(None, release.wait, 30)


def test_predictions_do_not_wait_for_the_threads_of_anything_else() -> None:
    async def check() -> None:
        release = threading.Event()
        await hold_default_threads(release)
        try:
            async with asyncio.timeout(10), open_server() as client:
                assert (await client.post("/v1/predict", form(b"one"))).status == 200
        finally:
            release.set()

    run(check())


def test_outcomes_wait_in_one_thread_and_too_many_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release, threads = threading.Event(), set[int]()

    def add_slowly(*_: Any) -> OutcomesAdded:
        threads.add(threading.get_ident())
        release.wait(30)
        return OutcomesAdded(n_new=1, n_known=0, rejected=())

    monkeypatch.setattr(feedback, "add_outcomes", add_slowly)

    async def check() -> None:
        with_default = threading.Event()
        await hold_default_threads(with_default)
        log = open_log(str(tmp_path / "log.sqlite"))
        writer = OutcomeWriter(log)
        waiting = [asyncio.create_task(writer.add([])) for _ in range(8)]
        await asyncio.sleep(0)
        try:
            with pytest.raises(Problem) as raised:
                await asyncio.wait_for(writer.add([]), 10)
            assert raised.value.code is ProblemCode.LOG_AWAY and raised.value.retry_after
        finally:
            release.set()
        assert [(await task).n_new for task in waiting] == [1] * 8 and len(threads) == 1
        assert (await writer.add([])).n_new == 1, "there is room again"
        with_default.set()
        log.close()

    run(check())


# A worker that does not come up again ---------------------------------------------------------------------------------


class MortalWorker(QuickWorker):
    """A worker that the first image ends, and that does not start a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.n_starts, self.is_in_start, self.was_killed = 0, threading.Event(), threading.Event()

    def start(self) -> dict[str, Any]:
        self.n_starts += 1
        if self.n_starts > 1:
            self.start_again()
        return super().start()

    def start_again(self) -> None:
        raise OutputError("the worker ended while it loaded the model")

    def kill(self) -> None:
        super().kill()
        self.was_killed.set()

    def run(self, jobs: Sequence[Job], deliver: Deliver) -> None:  # noqa: ARG002  as a worker's
        self.is_alive = False
        raise WorkerLost(WorkerRefusal.ENDED_WORKER, [0])


class HangingWorker(MortalWorker):
    """A worker whose second start takes until it is killed."""

    def start_again(self) -> None:
        self.is_in_start.set()
        self.was_killed.wait(30)
        super().start_again()


async def lose_worker(queue: ScoringQueue) -> "asyncio.Future[list[Any]]":
    """Begin with images whose worker is lost; returns their answers, which may be problems."""
    await queue.start()
    work = [queue.predict([ImageJob(b"bad"), ImageJob(b"good")]), queue.predict([ImageJob(b"next")])]
    return asyncio.gather(*work, return_exceptions=True)


def test_a_server_ends_whose_worker_cannot_be_started_again() -> None:
    async def check() -> None:
        worker = MortalWorker()
        queue = ScoringQueue(worker, ServeLimits(), ServerMetrics())
        answers = await lose_worker(queue)
        async with asyncio.timeout(10):
            while worker.n_starts < 2:
                await asyncio.sleep(0.01)
            await queue.stop()
            assert [getattr(problem, "code", "") for problem in await answers] == [ProblemCode.NOT_READY] * 2
        assert worker.n_starts <= 3

    run(check())


def test_a_server_ends_in_the_middle_of_a_start_of_its_worker() -> None:
    async def check() -> None:
        worker = HangingWorker()
        queue = ScoringQueue(worker, ServeLimits(), ServerMetrics())
        answers = await lose_worker(queue)
        async with asyncio.timeout(10):
            await asyncio.to_thread(worker.is_in_start.wait)
            await queue.stop()
            assert all(isinstance(problem, Problem) for problem in await answers)
        assert not worker.is_alive

    run(check())


# A worker that is alive and does nothing ------------------------------------------------------------------------------


class StoppedProcess:
    """A process that is alive, and neither reads nor writes. other_end: of the pipe, closed as its end closes it."""

    def __init__(self, other_end: Connection) -> None:
        self._other_end, self._is_alive = other_end, True

    def is_alive(self) -> bool:
        return self._is_alive

    def kill(self) -> None:
        self._is_alive = False
        self._other_end.close()

    def join(self, timeout: float | None = None) -> None:
        pass


@pytest.mark.parametrize("begun", [b"", b"\0\0\0\x64{"], ids=["reads nothing", "stops within a message"])
def test_a_worker_that_stops_in_the_middle_of_a_message_is_lost(begun: bytes) -> None:
    worker = WorkerProcess(ServeSettings(model=Path("model"), limits=ServeLimits(image_seconds=0.2)))
    connection, other_end = Pipe()
    worker._connection, worker._process = connection, StoppedProcess(other_end)
    if begun:
        with open(other_end.fileno(), "wb", buffering=0, closefd=False) as stream:
            stream.write(begun)
    jobs = [ImageJob(b"" if begun else bytes(2**24))]
    end_event = threading.Event()

    def expect_loss() -> None:
        with pytest.raises(WorkerLost):
            worker.run(jobs, lambda *_: None)
        end_event.set()

    threading.Thread(target=expect_loss, daemon=True).start()
    assert end_event.wait(20) and not worker.is_alive
    worker.stop()


# Guesses of a key -----------------------------------------------------------------------------------------------------


def test_wrong_secrets_for_one_key_leave_room_for_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(key_file._SCRYPT_COST, "n", 2**4)
    path, release = tmp_path / "keys.json", threading.Event()
    _, key_record = make_key(path, name="a", scopes=["predict"])
    other_key, other = make_key(path, name="b", scopes=["predict"])
    guard, verify = KeyGuard(KeyRing(path)), ApiKey.verify

    def verify_slowly(key: ApiKey, secret: str) -> bool:
        release.wait(30)
        return verify(key, secret)

    monkeypatch.setattr(ApiKey, "verify", verify_slowly)

    async def check() -> None:
        guesses = [
            asyncio.create_task(guard.check(f"Bearer {key_record[:-2]}{n:02d}", Scope.PREDICT)) for n in range(20)
        ]
        await asyncio.sleep(0)
        task = asyncio.create_task(guard.check(f"Bearer {other}", Scope.PREDICT))
        await asyncio.sleep(0)
        release.set()
        assert await task == other_key.id
        codes = [problem.code for problem in await asyncio.gather(*guesses, return_exceptions=True)]  # type: ignore[union-attr]
        assert codes.count(ProblemCode.KEY_NOT_VALID) == 2 and codes.count(ProblemCode.TOO_MANY_ATTEMPTS) == 18

    run(check())


# Lines that are not the server's --------------------------------------------------------------------------------------


def test_what_decoders_write_to_standard_error_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    stderr_copy = os.dup(2)
    try:
        os.write(2, b"before\n")
        silence_stderr()
        os.write(2, b"tempfile.tif: Jane Doe\n")
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
    assert capfd.readouterr().err == "before\n"
