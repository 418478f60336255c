"""Freed memory is kept within a training, given back after it, and left alone where the user has decided."""

import os
import subprocess
import sys

import pytest

from dermkit.training import memory
from dermkit.training.memory import kept_memory

N_PAGES = 4 * 48 * 2**20 // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
PAGE_FAULTS = """
import ctypes, resource
from dermkit.training.memory import kept_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]


def page_faults(n):  # of four blocks of 48 MiB that are filled and freed together, n times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        blocks = [libc.malloc(48 * 2**20) for _ in range(4)]
        for block in blocks:
            libc.memset(block, 1, 48 * 2**20)
        for block in blocks:
            libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(page_faults(2))
with kept_memory():
    page_faults(2)
    print(page_faults(8))
print(page_faults(2))
"""


@pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    # A process of its own: in one that has allocated much, blocks may find a place on the heap that is there.
    environment = {name: value for name, value in os.environ.items() if name not in memory._OWN_SETTINGS}
    run = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    before, within, after = map(int, run.stdout.split())
    assert before >= 2 * N_PAGES, "by default blocks are asked for anew"
    assert within < N_PAGES // 100, "the pages of eight rounds are there already"
    assert after >= 2 * N_PAGES, "afterwards it is given back as before"


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
