"""A parallel map that keeps the order of its inputs."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

RESULTS_PER_THREAD = 2
"""Finished results that may wait per thread; limits memory."""


INTERRUPT_SECONDS = 5.0
"""How long an interrupted command waits for threads in the middle of an image."""


def cpu_count() -> int:
    """Return how many processors this process may use; all of them where there is no CPU affinity (macOS, Windows)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Input], Output], inputs: Iterable[Input], *, n_threads: int
) -> Generator[Output, None, None]:
    """Yield function(value) for every input, in the order of the inputs.

    n_threads: threads that compute the next results while the caller uses one; 0 computes them in the caller. An
    exception of `function` is raised where its result was due. Closing the generator cancels what has not started.
    """
    if n_threads == 0:
        yield from map(function, inputs)
        return
    futures: deque[Future[Output]] = deque()
    with worker_pool(n_threads) as pool:
        for value in inputs:
            futures.append(pool.submit(function, value))
            if len(futures) > RESULTS_PER_THREAD * n_threads:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


@contextmanager
def worker_pool(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; what is not begun when the block ends is dropped, and what is begun is waited for.

    After an interrupt that wait ends: a stuck thread must not keep the command (`main` then leaves without it).
    """
    pool = ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="worker")
    try:
        yield pool
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + INTERRUPT_SECONDS
        for thread in _threads_of(pool):
            thread.join(max(0.0, deadline - time.monotonic()))
        raise
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True, cancel_futures=True)


class SharedContext:
    """A context that changes the whole process and that several threads are in at once: the last of them leaves it.

    If each left it for itself, one would do so in the middle of another's work, and the last one restore what a third
    set. enter: returns the context; called whenever a thread enters while no other is in it.
    """

    def __init__(self, enter: Callable[[], AbstractContextManager[object]]) -> None:
        self._enter, self._lock, self._stack = enter, threading.Lock(), ExitStack()
        self._n_users = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run the block inside the context, beside other such blocks."""
        with self._lock:
            if self._n_users == 0:
                self._stack.enter_context(self._enter())
            self._n_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_users -= 1
                if self._n_users == 0:
                    self._stack.close()


class SharedSetting:
    """A number that each thread has for itself, and that a new thread takes from the one that set it last.

    What new threads take is restored when the last of several users is done. It is read and written in new threads: a
    caller's own number may be another, and is not to be changed.
    """

    def __init__(self, read: Callable[[], int], write: Callable[[int], None]) -> None:
        self._read, self._write = read, write
        self._context = SharedContext(self._restored_once)

    def restored(self) -> AbstractContextManager[None]:
        """Let threads of the block change the number; new threads then take what they did before the first such block.

        The block must not change the number of its own thread.
        """
        self._read()  # torch gives a thread its number when it first asks, which must not happen within the block
        return self._context.shared()

    @contextmanager
    def _restored_once(self) -> Iterator[None]:
        first_value = _in_new_thread(self._read)
        try:
            yield
        finally:
            self._restore(first_value)

    def _restore(self, value: int) -> None:
        try:
            _in_new_thread(lambda: self._write(value))
        except RuntimeError:
            # Python is ending: it starts no thread any more that could take the number.
            if threading.main_thread().is_alive():
                raise


def _in_new_thread(function: Callable[[], Output]) -> Output:
    with ThreadPoolExecutor(1, thread_name_prefix="setting") as pool:
        return pool.submit(function).result()


def _threads_of(pool: ThreadPoolExecutor) -> list[threading.Thread]:
    """Return a pool's threads, which it names under a private name alone."""
    return list(getattr(pool, "_threads", ()))
