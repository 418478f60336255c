"""What one client holds costs the others nothing: threads, places in the queue, checks of keys, the server's end."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dermkit.prediction_log.outcomes import OutcomesAdded
from dermkit.prediction_log.writer import open_log
from dermkit.serving import feedback
from dermkit.serving.feedback import OutcomeWriter
from dermkit.serving.problems import Problem, ProblemCode
from served import form, run, served


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
            async with asyncio.timeout(10), served() as client:
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
