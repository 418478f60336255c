"""Work done ahead of whoever waits for it, in order: the results do not depend on how many threads do it."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

RESULTS_PER_THREAD = 2
"""Results per thread that may lie ready: enough that nobody waits, few enough that memory does not notice."""


def cpu_count() -> int:
    """Return how many processors this process may use; where that cannot be asked (macOS), how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Input], Output], inputs: Iterable[Input], *, n_threads: int
) -> Iterator[Output]:
    """Yield make(item) for every item, in order; with workers > 0, threads make the next ones meanwhile.

    An exception of `function` is raised where its result was due. Closing the generator abandons what is not begun.
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
