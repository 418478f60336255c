"""The store: what was put in is found again by its key, whole or not at all, whoever else writes, kills or evicts."""

import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dermkit.data.cache import segments, store
from dermkit.data.cache.segments import KEY_BYTES
from dermkit.data.cache.store import Store, StoredRows, evict
from dermkit.errors import OutputError
from dermkit.files import TEMP_PREFIX

SHAPE = (2, 3)


def key_of(number: int) -> NDArray[np.uint8]:
    """Return a key; of six numbers in a row, three share the first 8 bytes and two all but the last."""
    digest = bytearray(hashlib.sha256(str(number // 6).encode()).digest())
    if number % 6 < 3:
        digest[-1] ^= number % 6
    else:
        digest[20] ^= number % 6
        digest[0] ^= (number % 2) * 255
    return np.frombuffer(bytes(digest), np.uint8)


def keys_of(*numbers: int) -> NDArray[np.uint8]:
    return np.array([key_of(number) for number in numbers], np.uint8).reshape(-1, KEY_BYTES)


def values_of(*numbers: int) -> NDArray[np.float32]:
    """Return the one value that belongs to each number."""
    base = np.array(numbers, np.float32).reshape(-1, 1, 1) * 100
    return (base + np.arange(6, dtype=np.float32).reshape(SHAPE)).astype(np.float32)


def made(folder: Path, *numbers: int, notes: list[str] | None = None) -> Path:
    """Write one segment and return its file."""
    Store(folder, "s", shape=SHAPE, dtype="float32").add(keys_of(*numbers), values_of(*numbers), notes or [])
    (path,) = (folder / "s").glob("*.seg")
    return path


def opened(folder: Path) -> Store:
    return Store(folder, "s", shape=SHAPE, dtype="float32")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a process that has hashed nothing yet."""
    monkeypatch.setattr(segments, "verified_segments", {})


def test_rows_come_back_by_key_in_the_order_asked(tmp_path: Path) -> None:
    mine = opened(tmp_path)
    mine.add(keys_of(1, 2, 3), values_of(1, 2, 3), ["one", "", "drei ä"])
    mine.add(keys_of(4, 5), values_of(4, 5))
    for each in (mine, opened(tmp_path)):
        found = each.index(keys_of(5, 9, 1, 5, 3))
        assert (found < 0).tolist() == [False, True, False, False, False]
        chosen = found[found >= 0]
        taken = each.read(chosen)
        assert np.array_equal(taken, values_of(5, 1, 5, 3))
        assert taken.flags.writeable
        assert each.notes(chosen) == ["", "one", "", "drei ä"]
    assert opened(tmp_path).index(keys_of()).shape == (0,)
    assert Store(tmp_path / "absent", "s", shape=(), dtype="int64").index(keys_of(1)).tolist() == [-1]
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64", "bool", ">u2", "complex64"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 7)])
def test_every_type_of_number_and_shape(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 200, (4, *shape)).astype(dtype)
    Store(tmp_path, "s", shape=shape, dtype=dtype).add(keys_of(1, 2, 3, 4), values[:, ...])
    again = Store(tmp_path, "s", shape=shape, dtype=dtype)
    taken = again.read(again.index(keys_of(3, 1)))
    assert taken.dtype == np.dtype(dtype)
    assert np.array_equal(taken, values[[2, 0]])


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "find", "refresh", "reopen", "evict"]),
        st.integers(0, 2),
        st.lists(st.integers(0, 40), max_size=8),
    ),
    max_size=25,
)


@given(steps)
@settings(max_examples=60, deadline=None)
def test_against_a_dict_with_three_stores_on_one_folder(steps: list[tuple[str, int, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = [opened(folder) for _ in range(3)]
        seen: list[set[int]] = [
            set(),
            set(),
            set(),
        ]  # what each store must know: own rows, and what a refresh showed
        on_disk: set[int] = set()
        for what, who, numbers in steps:
            if what == "add":
                stores[who].add(keys_of(*numbers), values_of(*numbers))
                seen[who] |= set(numbers)
                on_disk |= set(numbers)
            elif what == "evict":
                evict(folder, 0)
                on_disk = set()
                seen = [set(), set(), set()]
            elif what == "reopen":
                stores[who], seen[who] = opened(folder), set(on_disk)
            elif what == "refresh":
                stores[who].refresh()
                seen[who] |= on_disk
            found = stores[who].index(keys_of(*numbers))
            assert {n for n, at in zip(numbers, found, strict=True) if at >= 0} >= seen[who] & set(numbers)
            there = [n for n, at in zip(numbers, found, strict=True) if at >= 0]
            assert np.array_equal(stores[who].read(found[found >= 0]), values_of(*there))
        last = opened(folder)
        assert (last.index(keys_of(*range(41))) >= 0).tolist() == [number in on_disk for number in range(41)]


def test_a_flip_of_any_byte_is_seen_and_the_segment_dropped(tmp_path: Path) -> None:
    path = made(tmp_path, 1, 2, notes=["a note", ""])
    whole = path.read_bytes()
    regions = {
        "magic": 3,
        "hash": 20,
        "length": 40,
        "header": 60,
        "keys": 150,
        "notes": 200,
        "values": len(whole) - 5,
    }
    assert max(regions.values()) < len(whole) < 400
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(broken)
        assert opened(tmp_path).index(keys_of(1, 2)).tolist() == [-1, -1], at
        assert not path.exists(), at
    path.write_bytes(whole)
    assert (opened(tmp_path).index(keys_of(1, 2)) >= 0).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[:0],
        lambda whole: whole[:7],
        lambda whole: whole[:50],
        lambda whole: whole[:-1],
        lambda whole: whole[:160],
        lambda whole: whole + b"\0",
        lambda whole: bytes(len(whole)),
        lambda whole: whole[:-24] + bytes(24),
    ],
)
def test_a_torn_segment_is_made_again(tmp_path: Path, change: Any) -> None:
    path = made(tmp_path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    again = opened(tmp_path)
    assert path.exists() == (len(change(whole)) == len(whole) and any(change(whole)))  # most need no hash
    assert again.index(keys_of(1, 2)).tolist() == [-1, -1]
    again.add(keys_of(1, 2), values_of(1, 2))
    assert np.array_equal(again.read(again.index(keys_of(2, 1))), values_of(2, 1))


def test_only_the_bad_segment_is_dropped_and_a_second_copy_of_its_rows_is_found(tmp_path: Path) -> None:
    bad = made(tmp_path, 1, 2, 3)
    other = opened(tmp_path)
    other.add(keys_of(3, 4), values_of(3, 4))
    bad.write_bytes(bad.read_bytes()[:-1] + b"\x7f")
    again = opened(tmp_path)
    found = again.index(keys_of(1, 2, 3, 4))
    assert (found < 0).tolist() == [True, True, False, False]
    assert np.array_equal(again.read(found[2:]), values_of(3, 4))
    assert len(files(tmp_path)) == 1


def test_keys_that_changed_on_disk_after_they_were_read_do_not_lead_to_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path, 1, 2)
    header_at = path.read_bytes().index(key_of(1).tobytes())
    whole = path.read_bytes()
    swapped = bytearray(whole)
    swapped[header_at : header_at + 64] = key_of(2).tobytes() + key_of(1).tobytes()
    path.write_bytes(swapped)
    late = opened(tmp_path)
    path.write_bytes(whole)  # whole again when it is hashed, but its keys were read before
    assert late.index(keys_of(1, 2)).tolist() == [-1, -1]


def test_a_segment_is_hashed_once_in_a_process_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    whole = segments.is_intact

    def counted(stream: IO[bytes]) -> bool:
        hashed.append(stream.name)
        return whole(stream)

    monkeypatch.setattr(segments, "is_intact", counted)
    path = made(tmp_path, 1, 2)
    assert (opened(tmp_path).index(keys_of(1)) >= 0).all()
    assert not hashed  # written by this process
    forget(monkeypatch)
    for _ in range(3):
        assert (opened(tmp_path).index(keys_of(1, 2)) >= 0).all()
    assert len(hashed) == 1
    assert opened(tmp_path).index(keys_of(9)).tolist() == [-1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert opened(tmp_path).index(keys_of(1)).tolist() == [-1]
    assert len(hashed) == 2


def test_other_shapes_other_formats_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    path = made(tmp_path, 1, 2)
    foreign = [path.with_name("notes.txt"), path.with_name("x.seg"), path.with_name("0" * 32 + ".2.seg")]
    for each in foreign:
        each.write_bytes(b"mine")
    for shape, dtype in (((3, 2), "float32"), (SHAPE, "int32"), ((6,), "float32")):
        other = Store(tmp_path, "s", shape=shape, dtype=dtype)
        assert other.index(keys_of(1, 2)).tolist() == [-1, -1]
    assert (opened(tmp_path).index(keys_of(1, 2)) >= 0).all()
    assert evict(tmp_path, 0) > 0
    assert files(tmp_path) == sorted(each.name for each in foreign)


def test_what_find_did_not_give_is_refused(tmp_path: Path) -> None:
    made(tmp_path, 1, 2)
    mine = opened(tmp_path)
    for wrong in ([-1], [0, -1], [2], [0]):  # 0 exists, but nobody has looked whether it is whole
        with pytest.raises(IndexError):
            mine.read(np.array(wrong))
        with pytest.raises(IndexError):
            StoredRows(mine, np.array(wrong))
    mine.index(keys_of(1))  # now the segment is open: -1 would be its last row
    assert np.array_equal(mine.read(np.array([1])), values_of(2))
    for wrong in ([-1], [0, -1], [2]):
        for read in (mine.read, mine.notes):
            with pytest.raises(IndexError):
                read(np.array(wrong))


@pytest.mark.parametrize(
    ("keys", "values", "notes"),
    [
        (keys_of(1), values_of(1, 2), []),
        (keys_of(1), values_of(1).astype(np.float64), []),
        (keys_of(1), values_of(1).reshape(1, 3, 2), []),
        (keys_of(1), values_of(1), ["a", "b"]),
        (keys_of(1)[:, :31], values_of(1), []),
        (keys_of(1).astype(np.int64), values_of(1), []),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    tmp_path: Path, keys: NDArray[Any], values: NDArray[Any], notes: list[str]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        opened(tmp_path).add(keys, values, notes)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("../s", (1,), "u1"),
        ("", (1,), "u1"),
        (".s", (1,), "u1"),
        ("s", (0,), "u1"),
        ("s", (1,), "O"),
        ("s", (1,), "U3"),
    ],
)
def test_a_name_cannot_leave_the_folder_and_rows_are_numbers(
    tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str
) -> None:
    with pytest.raises(ValueError, match="not a name, shape and type"):
        Store(tmp_path, name, shape=shape, dtype=dtype)


def test_the_same_rows_again_are_the_same_file_and_the_same_positions(tmp_path: Path) -> None:
    mine, other = opened(tmp_path), opened(tmp_path)
    for each in (mine, other, mine):
        each.add(keys_of(1, 2), values_of(1, 2))
        assert each.index(keys_of(1, 2)).tolist() == [0, 1]
    assert len(files(tmp_path)) == 1
    assert len(mine._segments) == 1


def test_a_caller_may_fill_its_arrays_again(tmp_path: Path) -> None:
    mine = opened(tmp_path)
    keys, values = keys_of(1), values_of(1)
    mine.add(keys, values)
    keys[...], values[...] = 0, 0
    assert np.array_equal(mine.read(mine.index(keys_of(1))), values_of(1))


def test_a_hundred_thousand_keys_are_found_by_as_many_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 100_000
    keys = np.random.default_rng(0).integers(0, 256, (n, KEY_BYTES), dtype=np.uint8)
    keys[1::1000, :8] = keys[::1000, :8]  # some share the first 8 bytes
    mine = Store(tmp_path, "s", shape=(), dtype="int64")
    for start in range(0, n, 5000):
        mine.add(keys[start : start + 5000], np.arange(start, start + 5000))
    compared = []
    same = store._rows_equal

    def counted(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.bool_]:
        compared.append(len(a))
        return same(a, b)

    monkeypatch.setattr(store, "_rows_equal", counted)
    order = np.random.default_rng(1).permutation(n)
    found = mine.index(keys[order])
    assert np.array_equal(mine.read(found), order)
    assert sum(compared) == n + 100  # one more for the second of two that share their beginning
    assert len(compared) <= 3  # in a handful of array operations, not one by one
    absent = np.random.default_rng(2).integers(0, 256, (n, KEY_BYTES), dtype=np.uint8)
    compared.clear()
    assert (mine.index(absent) == -1).all()
    assert sum(compared) == 0


# Rows: like an array ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredRows, NDArray[np.float32]]:
    """Return rows of five segments, in an order of their own, and the same as an array."""
    mine = opened(tmp_path_factory.mktemp("rows"))
    for start in range(0, 20, 4):
        numbers = range(start, start + 4)
        mine.add(keys_of(*numbers), values_of(*numbers))
    order = np.random.default_rng(0).permutation(20).tolist()
    return StoredRows(mine, mine.index(keys_of(*order))), values_of(*order)


indices: st.SearchStrategy[Any] = st.one_of(
    st.integers(-20, 19),
    st.slices(20),
    st.lists(st.integers(-20, 19)),
    st.lists(st.integers(-20, 19)).map(lambda rows: np.array(rows, np.int64)),
    st.lists(st.booleans(), min_size=20, max_size=20).map(np.array),
    st.lists(st.booleans(), min_size=20, max_size=20),
)


@given(indices)
@settings(deadline=None)
def test_rows_index_like_an_array(pair: tuple[StoredRows, NDArray[np.float32]], index: Any) -> None:
    rows, array = pair
    expected = (
        array[np.array(index, np.int64) if index == [] else index] if isinstance(index, list) else array[index]
    )
    got = rows[index]
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


def test_rows_are_an_array_where_one_is_wanted(pair: tuple[StoredRows, NDArray[np.float32]]) -> None:
    rows, array = pair
    assert len(rows) == 20
    assert (rows.shape, rows.ndim, rows.dtype) == (array.shape, 3, array.dtype)
    assert np.array_equal(np.asarray(rows), array)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64
    assert np.array_equal(np.stack(list(rows)), array)
    for wrong in (20, -21, [20], np.array([-21])):
        with pytest.raises(IndexError):
            rows[wrong]
    with pytest.raises(TypeError):
        rows[1, 2]
    with pytest.raises(ValueError, match="without a copy"):
        np.array(rows, copy=False)


def test_large_rows_are_taken_too(tmp_path: Path) -> None:
    big = Store(tmp_path, "s", shape=(300_000,), dtype="uint8")
    values = np.random.default_rng(0).integers(0, 256, (6, 300_000), dtype=np.uint8)
    big.add(keys_of(0, 1, 2, 3, 4, 5), values)
    order = np.array([5, 0, 3, 3, 2, 1, 4])
    assert np.array_equal(big.read(order), values[order])
    assert big.rows_per_segment == store.SEGMENT_BYTES // 300_000
    assert Store(tmp_path, "t", shape=(1,), dtype="u1").rows_per_segment == store.SEGMENT_ROWS
    assert Store(tmp_path, "u", shape=(2**30,), dtype="u1").rows_per_segment == 1


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux what is resident")
def test_what_was_read_is_given_back_and_still_there(tmp_path: Path) -> None:
    kept = Store(tmp_path, "t", shape=(300_000,), dtype="u1")
    keys, values = keys_of(*range(20)), np.random.default_rng(0).integers(0, 256, (20, 300_000), dtype=np.uint8)
    kept.add(keys, values)
    where = kept.index(keys)
    np.testing.assert_array_equal(kept.read(where), values)
    assert resident(tmp_path) > 5_000_000
    kept.release()
    assert resident(tmp_path) == 0
    np.testing.assert_array_equal(kept.read(where), values)


def resident(folder: Path) -> int:
    """Return how many bytes of maps of files below a folder are in this process's memory."""
    lines, total, inside = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if not line.split(" ", 1)[0].endswith(":"):  # the head of a map
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


# Devices, limits, other processes --------------------------------------------------------------------------------


@contextmanager
def limited(what: int, size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def test_a_file_that_cannot_be_written_whole_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    mine = Store(tmp_path, "s", shape=(10_000,), dtype="uint8")
    mine.add(keys_of(1), np.ones((1, 10_000), np.uint8))
    before = files(tmp_path)
    with limited(resource.RLIMIT_FSIZE, 50_000), pytest.raises(OutputError, match="cannot be written"):
        mine.add(keys_of(*range(20)), np.zeros((20, 10_000), np.uint8))
    assert files(tmp_path) == before
    assert mine.index(keys_of(1, 2)).tolist() == [0, -1]
    with pytest.raises(OutputError, match="MB needed"):
        mine.check_room(10**12)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        Store(blocked, "s", shape=(), dtype="u1").add(keys_of(1), np.zeros(1, np.uint8))


@pytest.mark.parametrize("failing", ["replace", "chmod"])
def test_an_interrupt_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    mine = opened(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, failing, interrupt)
        mine.add(keys_of(1), values_of(1))
    assert files(tmp_path) == []
    assert mine.index(keys_of(1)).tolist() == [-1]


def test_more_segments_than_open_files_are_allowed(tmp_path: Path) -> None:
    in_use = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with limited(resource.RLIMIT_NOFILE, in_use + 70):
        mine = opened(tmp_path)
        for number in range(100):
            mine.add(keys_of(number), values_of(number))
        again = opened(tmp_path)
        assert np.array_equal(again.read(again.index(keys_of(*range(100)))), values_of(*range(100)))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > in_use + 200


def test_too_many_open_files_are_said_and_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, 1)

    def refuse(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    mine = opened(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="cannot be open at once"):
        patch.setattr(store, "open_segment", refuse)
        mine.index(keys_of(1))
    assert (mine.index(keys_of(1)) >= 0).all()


PRELUDE = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from dermkit.data.cache.store import Store
folder = Path(sys.argv[1])
def key(number): return np.full((1, 32), number % 251, np.uint8)
def store(): return Store(folder, "s", shape=(1000,), dtype="int32")
def rows(first, n): return np.concatenate([np.full((1, 1000), i, np.int32) for i in range(first, first + n)])
def keys(first, n): return np.array([list(i.to_bytes(4, "big")) * 8 for i in range(first, first + n)], np.uint8)
"""

KILLED = (
    PRELUDE
    + """
loops = int(sys.argv[2])
rng = random.Random(int(sys.argv[3]))
segments = 0
for loop in range(loops):
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        mine, at = store(), 10_000 * loop
        while True:
            n = 1 + at % 300
            mine.add(keys(at, n), rows(at, n))
            os.write(say, b".")
            at += n
    os.read(hear, 1)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(hear), os.close(say)
    mine = store()
    found = mine.index(keys(10_000 * loop, 9_000))
    at = np.flatnonzero(found >= 0)
    assert np.array_equal(at, np.arange(len(at))), "a hole"
    assert (mine.read(found[at]) == (10_000 * loop + at)[:, None]).all(), "a wrong row"
    segments += len(at) > 0
names = os.listdir(folder / "s")
print(segments, sum(name[0] == "." for name in names), sum(name[0] != "." for name in names))
"""
)


def run_script(script: str, *args: object, wrapper: list[str] | None = None) -> str:
    done = subprocess.run(
        [*(wrapper or []), sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("loops", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_moment_leaves_whole_segments_only(tmp_path: Path, loops: int) -> None:
    with_rows, left, whole = map(int, run_script(KILLED, tmp_path, loops, 1).split())
    assert with_rows == loops
    assert left > 0  # some kills came while a segment was written
    assert len(files(tmp_path)) == whole + left
    # What kills left behind is not removed while it could be somebody's, and is later.
    Store(tmp_path, "s", shape=(1000,), dtype="int32").check_room(1)
    assert len(files(tmp_path)) == whole + left
    old = time.time() - 7200
    for path in (tmp_path / "s").glob(f"{TEMP_PREFIX}*"):
        os.utime(path, (old, old))
    Store(tmp_path, "s", shape=(1000,), dtype="int32").check_room(1)
    assert [name for name in files(tmp_path) if name.startswith(TEMP_PREFIX)] == []
    assert len(files(tmp_path)) == whole


WRITER = (
    PRELUDE
    + """
mine, at = store(), int(sys.argv[2])
for start in range(at, at + 2000, 50):
    mine.add(keys(start, 50), rows(start, 50))
    mine.refresh()
    found = mine.index(keys(0, 4000))
    good = np.flatnonzero(found >= 0)
    assert (mine.read(found[good]) == good[:, None]).all()
"""
)


def test_several_processes_add_at_once(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(at)], stderr=subprocess.PIPE)
        for at in (0, 1000, 2000)
    ]
    for writer in writers:
        _, message = writer.communicate(timeout=120)
        assert writer.returncode == 0, message.decode()
    mine = Store(tmp_path, "s", shape=(1000,), dtype="int32")
    numbers = np.arange(4000)
    keys = np.array([list(i.to_bytes(4, "big")) * 8 for i in range(4000)], np.uint8)
    assert (mine.read(mine.index(keys)) == numbers[:, None]).all()
    assert len(files(tmp_path)) == 80  # rows 1000 to 2999 were written twice: the same content, the same files


def private_mounts() -> list[str]:
    """Return the command that runs another with mounts of its own, or skip."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") and not subprocess.run(
            [*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        ).returncode:  # fmt: skip
            return command
    pytest.skip("needs the right to mount")


SMALL_DEVICE = (
    PRELUDE
    + """
import subprocess
from dermkit.errors import OutputError
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
mine = store()
mine.add(keys(0, 100), rows(0, 100))
try:
    mine.add(keys(100, 200), rows(100, 200))
    raise SystemExit("was let in")
except OutputError as error:
    assert "cannot be written" in str(error), error
try:
    mine.check_room(200)
    raise SystemExit("was let in")
except OutputError as error:
    assert "MB needed" in str(error), error
assert len(list((folder / "s").iterdir())) == 1
mine.add(keys(100, 50), rows(100, 50))
assert (store().index(keys(0, 151)) >= 0).sum() == 150

subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
from dermkit.data.cache import segments
segments.verified_segments.clear()
mine = store()
found = mine.index(keys(0, 151))
assert (mine.read(found[:150]) == np.arange(150)[:, None]).all()
assert found[150] == -1
for refused in (lambda: mine.add(keys(1000, 1), rows(1000, 1)), lambda: mine.check_room(1)):
    try:
        refused()
        raise SystemExit("was let in")
    except OutputError:
        pass
"""
)


def test_a_full_device_and_a_read_only_one(tmp_path: Path) -> None:
    run_script(SMALL_DEVICE, tmp_path, wrapper=private_mounts())


def test_a_read_only_folder_is_read_and_what_is_bad_there_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    bad = made(tmp_path, 1, 2)
    opened(tmp_path).add(keys_of(3), values_of(3))
    bad.write_bytes(bad.read_bytes()[:-1] + b"\x11")
    forget(monkeypatch)
    for module, name in ((os, "utime"), (Path, "unlink"), (tempfile, "mkstemp")):
        monkeypatch.setattr(module, name, refuse)
    mine = opened(tmp_path)
    for _ in range(2):
        found = mine.index(keys_of(1, 2, 3))
        assert (found < 0).tolist() == [True, True, False]
        assert np.array_equal(mine.read(found[2:]), values_of(3))
        mine.refresh()
    assert len(mine._segments) == 2  # the bad one was not looked at again
    assert evict(tmp_path, 0) == 0


# Eviction --------------------------------------------------------------------------------------------------------


def aged(folder: Path, *numbers: int) -> dict[int, Path]:
    """Write a segment for every number in two stores, the first the oldest; return their files."""
    found: dict[int, Path] = {}
    for age, number in enumerate(numbers):
        name = "even" if number % 2 == 0 else "odd"
        before = set(folder.rglob("*.seg"))
        Store(folder, name, shape=SHAPE, dtype="float32").add(keys_of(number), values_of(number))
        (found[number],) = set(folder.rglob("*.seg")) - before
        os.utime(found[number], (1000 + age, 1000 + age))
    return found


def test_eviction_removes_the_least_recently_used_over_all_stores_and_nothing_else(tmp_path: Path) -> None:
    paths = aged(tmp_path, 3, 1, 4, 2)
    size = paths[3].stat().st_size
    assert len({path.stat().st_size for path in paths.values()}) == 1
    (tmp_path / "even" / "mine.seg").write_bytes(b"dermseg\n" * 1000)
    (tmp_path / "large.npy").write_bytes(bytes(10_000))
    odd = Store(tmp_path, "odd", shape=SHAPE, dtype="float32")
    rows = StoredRows(odd, odd.index(keys_of(3)))  # used again: now the youngest

    def left() -> set[int]:
        return {number for number, path in paths.items() if path.exists()}

    assert evict(tmp_path, 4 * size) == 0
    assert evict(tmp_path, 4 * size - 1) == size
    assert left() == {3, 4, 2}
    assert evict(tmp_path, size) == 2 * size
    assert left() == {3}
    assert evict(tmp_path, 0) == size
    assert left() == set()
    assert np.array_equal(rows[:], values_of(3))  # an open map stays readable
    assert files(tmp_path) == ["large.npy", "mine.seg"]
    assert evict(tmp_path / "absent", 0) == 0


def test_eviction_spares_what_this_process_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = aged(tmp_path, 1, 3, 5)
    forget(monkeypatch)
    Store(tmp_path, "odd", shape=SHAPE, dtype="float32").index(keys_of(3))
    os.utime(paths[3], (1, 1))  # even where another clock says that it is the oldest
    evict(tmp_path, 0, spare_used=True)
    assert [number for number, path in paths.items() if path.exists()] == [3]


def test_what_is_evicted_between_looking_and_reading(tmp_path: Path) -> None:
    made(tmp_path, 1, 2)
    listed, found = opened(tmp_path), opened(tmp_path)
    positions = found.index(keys_of(1, 2))
    evict(tmp_path, 0)
    assert np.array_equal(found.read(positions), values_of(1, 2))
    assert (found.index(keys_of(1, 2)) >= 0).all()  # its map is still open
    assert listed.index(keys_of(1, 2)).tolist() == [-1, -1]
    listed.add(keys_of(1, 2), values_of(1, 2))
    assert np.array_equal(listed.read(listed.index(keys_of(1, 2))), values_of(1, 2))
    assert (opened(tmp_path).index(keys_of(1, 2)) >= 0).all()
