"""The worker process: an image that crashes it, hangs or takes too much memory is refused, and the others answered."""

import asyncio
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import dermkit as dk
from corner_net import save_corner_model
from dermkit.errors import UntrustedError
from dermkit.models.card import MODEL_JSON
from dermkit.serving import worker_process
from dermkit.serving.jobs import ImageJob, Job, WorkerRefusal
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.scoring_queue import ScoringQueue, Worker
from dermkit.serving.settings import ServeLimits, ServeSettings
from dermkit.serving.worker_process import Deliver, WorkerLost, WorkerProcess
from server_parts import MODEL_FACTS, QuickWorker, photo, run
from serving_faults import CRASH, CRASH_IN_NET, HANG, KILL, MEMORY, run_faulty_worker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder whose net looks at the top left corner alone."""
    return save_corner_model(tmp_path_factory.mktemp("served") / "model")


def queue_of(worker: Worker, limits: ServeLimits | None = None) -> ScoringQueue:
    return ScoringQueue(worker, limits or ServeLimits(), ServerMetrics())


def flat(edge: int) -> bytes:
    """Return the file of a white square: some hundred bytes."""
    stream = io.BytesIO()
    Image.new("1", (edge, edge), 1).save(stream, "PNG", optimize=True)
    return stream.getvalue()


async def refusals(queue: ScoringQueue, images: Sequence[bytes]) -> list[str]:
    """Return why each image was refused, "" where it was scored."""
    answers = await queue.predict([ImageJob(data) for data in images])
    return [answer["refusal"]["reason"] if answer["refusal"] else "" for answer in answers]


# With a process -----------------------------------------------------------------------------------------------------


def test_an_image_that_ends_or_holds_the_worker_costs_the_others_nothing(model: Path) -> None:
    limits = ServeLimits(image_seconds=2)
    worker = WorkerProcess(ServeSettings(model=model, limits=limits, workers=1), entry=run_faulty_worker)
    good = [photo(seed) for seed in range(3)]

    async def check() -> None:
        queue = queue_of(worker, limits)
        facts = await queue.start()
        assert facts["model"]["files_sha256"] == dk.load_model(model).files_sha256
        first = worker.process_id
        assert await refusals(queue, [good[0], b"no image", good[1]]) == ["", "not_an_image", ""]
        assert await refusals(queue, [flat(3000), flat(900)]) == ["too_large", ""]
        assert worker.process_id == first
        assert await refusals(queue, [good[0], KILL, good[1]]) == ["", WorkerRefusal.ENDED_WORKER, ""]
        second = worker.process_id
        assert second != first
        assert await refusals(queue, [KILL]) == [WorkerRefusal.ENDED_WORKER]
        assert worker.process_id == second, "the same bytes are not tried again"
        assert await refusals(queue, [HANG, good[2]]) == [WorkerRefusal.OUT_OF_TIME, ""]
        assert worker.process_id != second
        await queue.stop()
        assert worker.process_id is None

    run(check())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux' own")
def test_every_way_to_lose_the_worker(model: Path) -> None:
    limits = ServeLimits(image_seconds=3)
    worker = WorkerProcess(ServeSettings(model=model, limits=limits, workers=2), entry=run_faulty_worker)
    good = [photo(seed) for seed in range(4)]

    async def check() -> None:
        queue = queue_of(worker, limits)
        await queue.start()
        ended, memory = WorkerRefusal.ENDED_WORKER.value, WorkerRefusal.OUT_OF_MEMORY.value
        assert await refusals(queue, [good[0], CRASH, good[1]]) == ["", ended, ""]
        first = worker.process_id
        assert await refusals(queue, [good[0], MEMORY, good[1]]) == ["", memory, ""]
        assert worker.process_id == first, "too little memory ends nothing"
        spoilt = photo(9) + CRASH_IN_NET
        assert await refusals(queue, [good[0], spoilt, *good[1:]]) == ["", ended, "", "", ""]
        both = [HANG + b"1", *good, CRASH + b"2", KILL + b"3"]
        assert sorted(await refusals(queue, both)) == ["", "", "", "", ended, ended, "out_of_time"]
        os.kill(worker.process_id or 0, 9)
        deadline = time.monotonic() + 30
        while queue.reasons_not_ready() or not worker.is_alive:
            await asyncio.sleep(0.1)
            assert time.monotonic() < deadline
        assert await refusals(queue, good) == [""] * 4
        await queue.stop()

    run(check())


def test_a_model_that_is_not_trusted_ends_the_start_with_its_own_error(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / MODEL_JSON.name).write_text("{}")
    worker = WorkerProcess(ServeSettings(model=tmp_path))
    with pytest.raises(UntrustedError, match="SHA-256 differs"):
        worker.start()
    assert not worker.is_alive


def test_a_slow_model_has_time_for_each_image_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = worker_process._JobWatch([ImageJob(b"")] * 8, ServeLimits(image_seconds=20))
    assert watch.deadline == 100 + 8 * 20 and watch.suspects == []
    for index in range(8):
        now[0] += 1
        watch.note("begin", index)
        assert watch.deadline == now[0] + 20
        watch.note("end", index)
    assert watch.deadline == now[0] + 8 * 20, "the model has them all now"
    watch.note("answer", 0)
    watch.note("begin", 3)
    watch.note("begin", 4)
    now[0] += 15
    watch.note("begin", 5)
    now[0] += 6
    assert watch.deadline < now[0] and watch.suspects == [3, 4]


def test_a_message_that_does_not_end_ends_the_worker_and_quick_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_process, "_MIN_TRANSFER_SECONDS", 0.3)
    monkeypatch.setattr(worker_process, "_LOOK_SECONDS", 0.01)
    is_ended = threading.Event()
    watch = worker_process._TransferWatch(is_ended.set)
    end_time = time.monotonic() + 0.6
    while time.monotonic() < end_time:
        with watch.limit(time.monotonic() + 60):
            time.sleep(0.001)
    assert not is_ended.is_set()
    time.sleep(0.1)
    with watch.limit(time.monotonic() - 1):
        assert is_ended.wait(30)


# What the queue does when a worker is lost --------------------------------------------------------------------------


class FragileWorker(QuickWorker):
    """A worker that is lost as the test says. lose: gets the images of a batch; returns how it is lost, or None."""

    def __init__(self, lose: Callable[[Sequence[bytes]], WorkerLost | None]) -> None:
        super().__init__()
        self._lose, self.n_starts = lose, 0

    def start(self) -> dict[str, Any]:
        self.n_starts += 1
        return super().start()

    def run(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        loss = self._lose([job.data for job in jobs])
        if loss is not None:
            self.batches.append([job.data for job in jobs])
            self.is_alive = False
            raise loss
        super().run(jobs, deliver)


def test_suspects_are_tried_one_by_one() -> None:
    def lose(images: Sequence[bytes]) -> WorkerLost | None:
        if b"bad" not in images:
            return None
        suspects = [0, 1, 2] if len(images) == 5 else list(range(len(images)))
        return WorkerLost(WorkerRefusal.ENDED_WORKER, suspects)

    worker = FragileWorker(lose)

    async def check() -> None:
        queue = queue_of(worker)
        await queue.start()
        assert await refusals(queue, [b"a", b"bad", b"c", b"d", b"e"]) == ["", "ended_worker", "", "", ""]
        assert worker.batches == [[b"a", b"bad", b"c", b"d", b"e"], [b"d", b"e"], [b"a"], [b"bad"], [b"c"]]
        assert worker.n_starts == 3
        await queue.stop()

    run(check())


def test_a_worker_that_ends_between_batches_blames_no_image() -> None:
    losses = iter([True, False, True, True, True, True])
    worker = FragileWorker(lambda _: WorkerLost(WorkerRefusal.ENDED_WORKER, []) if next(losses) else None)

    async def check() -> None:
        queue = queue_of(worker)
        await queue.start()
        assert await refusals(queue, [b"a", b"b"]) == ["", ""]
        assert await refusals(queue, [b"c"]) == ["ended_worker"], "but it ends at some time"
        await queue.stop()

    run(check())


def test_images_wait_while_the_worker_is_started_again() -> None:
    go = threading.Event()

    class Slow(FragileWorker):
        def start(self) -> dict[str, Any]:
            if self.n_starts:
                go.wait(20)
            return super().start()

    worker = Slow(lambda images: WorkerLost(WorkerRefusal.ENDED_WORKER, [0]) if b"bad" in images else None)

    async def check() -> None:
        queue = queue_of(worker)
        await queue.start()
        assert await refusals(queue, [b"bad"]) == ["ended_worker"]
        waiting = asyncio.create_task(refusals(queue, [b"good"]))
        while queue.reasons_not_ready() != ["the worker is being started again"]:
            await asyncio.sleep(0.01)
        go.set()
        assert await waiting == [""] and not queue.reasons_not_ready()
        await queue.stop()

    run(check())


def test_a_worker_that_does_not_come_up_again_leaves_nobody_waiting() -> None:
    class AlteredWorker(FragileWorker):
        def start(self) -> dict[str, Any]:
            facts = super().start()
            return (
                facts if self.n_starts in (1, 3) else {"model": {**MODEL_FACTS["model"], "files_sha256": "other"}}
            )

    worker = AlteredWorker(
        lambda images: WorkerLost(WorkerRefusal.ENDED_WORKER, [0]) if b"bad" in images else None
    )

    async def check() -> None:
        queue = queue_of(worker)
        await queue.start()
        with pytest.raises(Problem) as raised:
            await refusals(queue, [b"bad", b"good"])
        assert raised.value.code is ProblemCode.NOT_READY and "changed" in raised.value.detail
        assert queue.reasons_not_ready()
        with pytest.raises(Problem):
            await refusals(queue, [b"good"])
        while queue.reasons_not_ready():
            await asyncio.sleep(0.05)
        assert await refusals(queue, [b"good"]) == [""]
        await queue.stop()

    run(check())
