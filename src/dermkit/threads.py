"""A parallel map that keeps the order of its inputs."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

RESULTS_PER_THREAD = 2
"""Finished results that may wait per thread; limits memory."""


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
    pool = ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="ahead")
    futures: deque[Future[Output]] = deque()
    try:
        for value in inputs:
            futures.append(pool.submit(function, value))
            if len(futures) > RESULTS_PER_THREAD * n_threads:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
