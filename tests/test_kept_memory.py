"""Freed memory is kept within a training, given back after it, and left alone where the user has decided."""

import sys

import pytest
import torch

from dermkit.training import memory
from dermkit.training.memory import kept_memory

N_PAGES = 4 * 48 * 2**20 // 4096


def page_faults(n: int) -> int:
    """Return the pages that the system had to give to fill four blocks of 48 MiB and free them together, n times."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        blocks = [torch.empty(12 * 2**20).fill_(1.0) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
def test_freed_memory_is_used_again_without_asking_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    # Up to 64 MiB stay at the heap's end by default, so that one block of each round may find its place there.
    assert page_faults(2) >= 2 * N_PAGES * 3 // 4, "by default blocks are asked for anew"
    with kept_memory():
        page_faults(2)
        # A block whose neighbour is in use may not fit the place that it had, so that one more place is made.
        assert page_faults(8) < 3 * N_PAGES
    assert page_faults(2) > N_PAGES, "afterwards it is given back as before"


class Recorder:
    """A C library that notes what is set. largest: the largest mmap threshold that it takes."""

    def __init__(self, largest: int) -> None:
        self.largest, self.calls = largest, list[tuple[int, int]]()

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return int(parameter != -3 or value <= self.largest)

    def malloc_trim(self, pad: int) -> int:
        self.calls.append((0, pad))
        return 1


def test_an_old_library_gets_the_largest_value_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for largest, expected in ((2**31, []), (2**25, [(-3, 2**25)])):
        library = Recorder(largest)
        monkeypatch.setattr(memory, "_glibc", lambda library=library: library)
        with pytest.raises(KeyError), kept_memory():
            raise KeyError
        begin = [(-1, 2**31 - 1), (-3, 2**31 - 1), *expected]
        assert library.calls == [*begin, (-3, 2**25), (-1, 2**26), (0, 0)]


@pytest.mark.parametrize("name", memory._OWN_SETTINGS)
def test_what_the_user_has_set_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder(2**31)
    monkeypatch.setattr(memory, "_glibc", lambda: library)
    monkeypatch.setenv(name, "1")
    with kept_memory():
        pass
    assert library.calls == []


def test_other_systems_have_no_such_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert memory._glibc() is None
    with kept_memory():
        pass
