"""The queue before the model: bounded, and emptied in batches, whichever requests the images came with.

An image that ends the worker, or hangs, gets a refusal of its own; the others of its batch are scored again.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dermkit.errors import DermkitError
from dermkit.serving.jobs import ExplainJob, ImageJob, Job, WorkerRefusal
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.settings import ServeLimits
from dermkit.serving.worker_process import Deliver, WorkerLost

_Result = TypeVar("_Result")
_LOG = logging.getLogger("dermkit.serving")
_LOOK_SECONDS = 1.0
_MAX_WAIT_TO_RESTART = 30.0
_REMEMBERED_SECONDS = 600.0
_MAX_REMEMBERED = 1024
_MAX_LOSSES = 2
_MAX_RETRY_SECONDS = 60
_PACE_WEIGHT = 0.2
"""Of the last batch in the pace of the model."""


class Worker(Protocol):
    """What runs the model: `WorkerProcess`, which says what each method does."""

    @property
    def is_alive(self) -> bool:
        """Return whether it runs."""

    def start(self) -> dict[str, Any]:
        """Load the model; returns what it is."""

    def run(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        """Answer jobs of one kind."""

    def stop(self) -> None:
        """End it when it has finished."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(eq=False)
class _Ticket:
    """A job and who waits for its answer. n_losses: how often the worker was lost before it began with this batch."""

    job: Job
    answer: "asyncio.Future[Mapping[str, Any]]"
    digest: bytes
    n_losses: int = 0


class ScoringQueue:
    """Lets requests wait for the model. All methods are of one event loop; a thread of its own talks to the worker."""

    def __init__(self, worker: Worker, limits: ServeLimits, metrics: ServerMetrics) -> None:
        self._worker, self._limits, self._metrics = worker, limits, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dermkit-worker")
        self._waiting: deque[_Ticket] = deque()
        self._in_work: Sequence[_Ticket] = ()
        self._wake = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None
        self._files_sha256 = ""
        self._why_not_ready = "the model is not loaded yet"
        self._stop, self._is_restarting, self._is_ended = asyncio.Event(), False, False
        self._seconds_per_image = 0.0
        self._dangerous: OrderedDict[bytes, float] = OrderedDict()

    @property
    def n_waiting(self) -> int:
        """Return how many images wait or are being scored."""
        return len(self._waiting) + len(self._in_work)

    @property
    def retry_after(self) -> int:
        """Return after how many seconds the images that wait now will have been scored, at the pace so far."""
        return min(_MAX_RETRY_SECONDS, max(1, math.ceil(self.n_waiting * self._seconds_per_image)))

    def reasons_not_ready(self) -> list[str]:
        """Return why a request would not be accepted now, nothing where it would."""
        reasons = ["the server is stopping"] * self._stop.is_set()
        reasons += [self._why_not_ready] * bool(self._why_not_ready)
        reasons += ["the worker is being started again"] * self._is_restarting
        return reasons + ["the queue is full"] * (self.n_waiting >= self._limits.max_waiting)

    def check_room(self, n_images: int = 1) -> None:
        """Raise `Problem` where so many images would not be accepted now."""
        if self._stop.is_set():
            raise Problem(ProblemCode.STOPPING, retry_after=self.retry_after, closes=True)
        if self._why_not_ready:
            raise Problem(ProblemCode.NOT_READY, self._why_not_ready, retry_after=self.retry_after, closes=True)
        if self.n_waiting + n_images > self._limits.max_waiting:
            raise Problem(
                ProblemCode.QUEUE_FULL, f"at most {self._limits.max_waiting} images may wait",
                retry_after=self.retry_after, closes=True,
            )  # fmt: skip

    async def start(self) -> dict[str, Any]:
        """Start the worker and return what the model is; raises the error of the loading."""
        try:
            facts = await self._in_thread(self._worker.start)
        except asyncio.CancelledError:
            self._worker.kill()
            raise
        self._files_sha256, self._why_not_ready = facts["model"]["files_sha256"], ""
        self._driver = asyncio.create_task(self._drive())
        return facts

    def _in_thread(self, act: Callable[..., _Result], *values: Any) -> "asyncio.Future[_Result]":
        """Run an act in the thread of the worker, which nothing else keeps busy."""
        return asyncio.get_running_loop().run_in_executor(self._thread, act, *values)

    def refuse_new(self) -> None:
        """Accept no more; what was accepted is answered."""
        self._stop.set()

    async def stop(self) -> None:
        """Answer what was accepted, and end the worker, also in the middle of a start; a second call does nothing."""
        if self._is_ended:
            return
        self.refuse_new()
        while self.n_waiting and self._driver is not None and not self._driver.done():
            self._end_restart()
            await asyncio.sleep(0.02)
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.wait([self._driver])
        stop = self._in_thread(self._worker.stop)
        while not stop.done():
            self._end_restart()  # which has the thread
            await asyncio.wait([stop], timeout=0.02)
        await stop
        self._is_ended = True
        self._thread.shutdown(wait=False)

    def _end_restart(self) -> None:
        if self._is_restarting:
            self._worker.kill()

    def kill(self) -> None:
        """End the worker at once, whatever it does: nobody waits any more."""
        self._worker.kill()

    async def predict(self, jobs: Sequence[ImageJob]) -> list[Mapping[str, Any]]:
        """Return the answer for each image, in order; raises `Problem` where they do not all find room."""
        return await self._enqueue(jobs)

    async def explain(self, job: ExplainJob) -> Mapping[str, Any]:
        """Return the heat map of one image as the worker gives it; raises `Problem` as `predict` does."""
        return (await self._enqueue([job]))[0]

    async def _enqueue(self, jobs: Sequence[Job]) -> list[Mapping[str, Any]]:
        self.check_room(len(jobs))
        loop = asyncio.get_running_loop()
        tickets = [_Ticket(job, loop.create_future(), hashlib.sha256(job.data).digest()) for job in jobs]
        self._waiting.extend(tickets)
        self._wake.set()
        try:
            return list(await asyncio.gather(*(ticket.answer for ticket in tickets)))
        finally:  # a client that is gone leaves its places to others
            for ticket in tickets:
                ticket.answer.cancel()

    # The driver ------------------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        while self._waiting or not self._stop.is_set():
            if not self._worker.is_alive and not await self._start_again():
                return
            batch = self._next_batch()
            if not batch:
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), _LOOK_SECONDS)
                except TimeoutError:
                    continue  # to see whether the worker ended while there was nothing to do
                continue
            self._in_work = batch
            try:
                await self._run(batch)
            except Exception as error:  # noqa: BLE001  a fault of ours must not leave requests without an answer
                _LOG.error("fault in the queue: %s", type(error).__name__)
                for ticket in batch:
                    _resolve(ticket, Problem(ProblemCode.FAULT))
            finally:
                self._in_work = ()

    def _next_batch(self) -> list[_Ticket]:
        """Take the next images to score together, or one to explain; those that nobody waits for are dropped."""
        batch: list[_Ticket] = []
        n_bytes = 0
        while self._waiting and len(batch) < self._limits.batch_size:
            ticket = self._waiting[0]
            if ticket.answer.done():
                self._waiting.popleft()
                continue
            is_explain = isinstance(ticket.job, ExplainJob)
            n_bytes += len(ticket.job.data)
            if batch and (is_explain or n_bytes > self._limits.max_body_bytes):
                break
            batch.append(self._waiting.popleft())
            if is_explain:
                break
        return batch

    async def _run(self, batch: Sequence[_Ticket]) -> None:
        """Answer a batch; where the worker is lost, answer who did it, and score the others again."""
        groups: deque[list[_Ticket]] = deque([list(self._without_dangerous(batch))])
        while groups:
            group = [ticket for ticket in groups.popleft() if not ticket.answer.done()]
            if not group:
                continue
            if not self._worker.is_alive and not await self._start_again():
                return
            self._metrics.observe_batch(len(group))
            loss = await self._in_thread(self._run_once, group, asyncio.get_running_loop())
            if loss is not None:
                groups.extend(self._after_loss(group, loss))

    def _run_once(self, group: Sequence[_Ticket], loop: asyncio.AbstractEventLoop) -> WorkerLost | None:
        """Run jobs in the worker, in a thread; returns how it was lost, None where all are answered."""

        def deliver(index: int, answer: Mapping[str, Any]) -> None:
            loop.call_soon_threadsafe(_resolve, group[index], answer)

        start_time = time.monotonic()
        try:
            self._worker.run([ticket.job for ticket in group], deliver)
        except WorkerLost as loss:
            return loss
        seconds = (time.monotonic() - start_time) / len(group)
        self._seconds_per_image += _PACE_WEIGHT * (seconds - self._seconds_per_image)
        return None

    def _after_loss(self, group: Sequence[_Ticket], loss: WorkerLost) -> list[list[_Ticket]]:
        """Return what is to be run again: suspects one by one, where there are several, and the others together."""
        _LOG.warning("worker lost (%s), %d suspects of %d images", loss.reason, len(loss.suspects), len(group))
        if not loss.suspects:  # it ended before it began: no image did that, unless it happens every time
            for ticket in group:
                ticket.n_losses += 1
                if ticket.n_losses > _MAX_LOSSES:
                    _resolve(ticket, refusal_fields(loss.reason))
            return [list(group)]
        suspects = [group[index] for index in loss.suspects]
        innocent = [ticket for ticket in group if ticket not in suspects]
        if len(suspects) == 1:
            self._remember(suspects[0].digest)
            _resolve(suspects[0], refusal_fields(loss.reason))
            suspects = []
        return [innocent, *([ticket] for ticket in suspects)]

    def _remember(self, digest: bytes) -> None:
        """Keep the hash of an image that lost a worker: the same bytes are not tried again for some minutes."""
        self._dangerous[digest] = time.monotonic()
        while len(self._dangerous) > _MAX_REMEMBERED:
            self._dangerous.popitem(last=False)

    def _without_dangerous(self, batch: Sequence[_Ticket]) -> Iterator[_Ticket]:
        for ticket in batch:
            last_loss = self._dangerous.get(ticket.digest)
            if last_loss is not None and time.monotonic() - last_loss < _REMEMBERED_SECONDS:
                _resolve(ticket, refusal_fields(WorkerRefusal.ENDED_WORKER))
            else:
                yield ticket

    async def _start_again(self) -> bool:
        """Start the worker, and try until it comes up with the same model; returns False where the server stops first.

        Images that come meanwhile wait, as long as there is room; they get a problem where the first try failed.
        """
        self._is_restarting, wait_seconds = True, 1.0
        while reason := await self._why_not_started():
            self._why_not_ready = reason
            self._refuse_waiting()
            try:
                await asyncio.wait_for(self._stop.wait(), wait_seconds)
            except TimeoutError:
                wait_seconds = min(2 * wait_seconds, _MAX_WAIT_TO_RESTART)
            else:
                self._is_restarting = False
                return False
        self._is_restarting, self._why_not_ready = False, ""
        return True

    async def _why_not_started(self) -> str:
        """Start the worker; returns why it does not run with the same model, "" where it does."""
        self._metrics.count_restart()
        try:
            facts = await self._in_thread(self._worker.start)
        except DermkitError as error:
            _LOG.error("the worker cannot be started: %s", type(error).__name__)
            return "the model cannot be loaded again"
        if facts["model"]["files_sha256"] == self._files_sha256:
            return ""
        await self._in_thread(self._worker.stop)
        return "the model folder was changed: start the server again"

    def _refuse_waiting(self) -> None:
        for ticket in (*self._in_work, *self._waiting):
            _resolve(ticket, Problem(ProblemCode.NOT_READY, self._why_not_ready, retry_after=self.retry_after))
        self._waiting.clear()


def _resolve(ticket: _Ticket, answer: Mapping[str, Any] | Problem) -> None:
    if ticket.answer.done():
        return
    if isinstance(answer, Problem):
        ticket.answer.set_exception(answer)
    else:
        ticket.answer.set_result(answer)


_DETAILS: Mapping[WorkerRefusal, str] = {
    WorkerRefusal.ENDED_WORKER: "the process that opened it ended; it was started again",
    WorkerRefusal.OUT_OF_TIME: "it took longer than an image may take",
    WorkerRefusal.OUT_OF_MEMORY: "it took more memory than an image may take",
    WorkerRefusal.NOT_SCORED: "the model gave no answer for it",
}


def refusal_fields(reason: WorkerRefusal) -> dict[str, Any]:
    """Return the answer for an image that the worker could not finish."""
    return {"refusal": {"reason": reason.value, "detail": _DETAILS[reason]}}
