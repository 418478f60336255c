"""Work done ahead of whoever waits for it, in order: the results do not depend on how many threads do it."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DEPTH = 2
"""Results per thread that may lie ready: enough that nobody waits, few enough that memory does not notice."""


def cores() -> int:
    """Return how many processors this process may use; where that cannot be asked (macOS), how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ahead(make: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Yield make(item) for every item, in order; with workers > 0, threads make the next ones meanwhile.

    An exception of `make` is raised where its result was due. Closing the generator abandons what is not begun.
    """
    if workers == 0:
        yield from map(make, items)
        return
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > DEPTH * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
