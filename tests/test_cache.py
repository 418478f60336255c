"""Caches: decoded once, found again, never believed when wrong, never half written."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dermkit.data.cache import pixels, segments, store
from dermkit.data.cache.pixels import PixelCache, evict_to_size, pixel_cache, pixel_keys
from dermkit.data.manifest import Dataset, LesionClass
from dermkit.errors import DataError, OutputError
from dermkit.files import TEMP_PREFIX
from dermkit.images.decode import LesionImage, open_image
from dermkit.images.preprocess import Preprocessing, resize_pixels

PREPROCESSING = Preprocessing(
    size=32, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
STORE = "pixels-32-squash-bilinear-1"


def noise_dataset(folder: Path, count: int) -> Dataset:
    """Write images of noise, of different sizes; return them with the manifest columns that the cache reads."""
    images = folder / "images"
    images.mkdir()
    rows = []
    for number in range(count):
        path = images / f"lesion{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        rows.append((f"lesion{number}", path.name, open_image(path).pixel_sha256))
    return of_rows(folder, rows)


def of_rows(folder: Path, rows: list[tuple[str, str, str]]) -> Dataset:
    manifest = pd.DataFrame(rows, columns=["image_id", "path", "pixel_sha256"])
    classes = (LesionClass("nevus", "nevus", "benign"),)
    return Dataset(folder, folder / "images", "made", classes, manifest, "test", {})


def ids_of(dataset: Dataset) -> list[str]:
    return list(map(str, dataset.manifest["image_id"]))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six images."""
    return noise_dataset(tmp_path, 6)


def decode(
    dataset: Dataset, ids: list[str], preprocessing: Preprocessing = PREPROCESSING, workers: int = 0
) -> tuple[PixelCache, int]:
    """Return the cache, of which every pixel was compared, and how many images were decoded for it."""
    calls: list[tuple[int, int]] = []
    made = pixel_cache(
        dataset,
        ids,
        preprocessing,
        folder=dataset.folder / "cache",
        on_progress=lambda *at: calls.append(at),
        workers=workers,
    )
    assert calls == [(done, len(calls)) for done in range(1, len(calls) + 1)]
    for row, name in enumerate(ids):
        expected = resize_pixels(open_image(dataset.image_path(name)).pixels, preprocessing)
        assert np.array_equal(made.pixels[row], expected), name
    return made, len(calls)


def in_cache(dataset: Dataset) -> list[str]:
    return sorted(path.name for path in (dataset.folder / "cache").rglob("*") if path.is_file())


def test_pixels_are_those_of_the_gate_in_the_order_asked_for_and_decoded_once(dataset: Dataset) -> None:
    ids = ["lesion4", "lesion0", "lesion3"]
    made, decoded = decode(dataset, ids)
    assert decoded == 3
    assert made.index == {"lesion4": 0, "lesion0": 1, "lesion3": 2}
    assert made.pixels.shape == (3, 32, 32, 3)
    assert made.pixels.dtype == np.uint8
    made.pixels[0][...] = 0  # a copy; the next reading is as before
    again, decoded = decode(dataset, ids)
    assert decoded == 0
    assert again.key == made.key
    assert np.array_equal(again.pixels, made.pixels)


def test_other_lists_of_images_decode_only_what_is_new(dataset: Dataset) -> None:
    assert decode(dataset, ["lesion0", "lesion1", "lesion2"])[1] == 3
    assert decode(dataset, ["lesion2", "lesion0"])[1] == 0  # a fold
    assert decode(dataset, ["lesion3", "lesion1", "lesion4"])[1] == 2  # another split
    assert decode(dataset, ids_of(dataset)[::-1])[1] == 1  # a data set that grew
    other = of_rows(dataset.folder, [("x", *dataset.manifest.iloc[5][["path", "pixel_sha256"]])])
    assert decode(other, ["x"])[1] == 0  # another data set with the same picture


def test_identical_images_are_decoded_once(dataset: Dataset) -> None:
    rows = []
    for number in range(9):
        path, digest = dataset.manifest.iloc[number % 3][["path", "pixel_sha256"]]
        shutil.copyfile(dataset.image_root / path, dataset.image_root / f"copy{number}.png")
        rows.append((f"copy{number}", f"copy{number}.png", digest))
    copies = of_rows(dataset.folder, rows)
    made, decoded = decode(copies, ids_of(copies))
    assert decoded == 3
    assert len(made.pixels) == 9


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), max_size=4), st.integers(1, 4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lists_in_any_order_with_any_size_of_segment(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, lists: list[list[int]], rows: int
) -> None:
    shutil.rmtree(dataset.folder / "cache", ignore_errors=True)
    monkeypatch.setattr(store, "SEGMENT_ROWS", rows)
    seen: set[int] = set()
    for numbers in lists:
        made, decoded = decode(dataset, [f"lesion{number}" for number in numbers])
        assert len(made.pixels) == len(numbers)
        assert decoded == len(set(numbers) - seen)
        seen |= set(numbers)


def test_the_key_follows_geometry_and_images_but_not_the_normalisation(dataset: Dataset) -> None:
    ids = ["lesion0", "lesion1"]
    key = decode(dataset, ids)[0].key
    whitened = replace(PREPROCESSING, mean=(0.5, 0.5, 0.5), divide_by=1.0)
    again, decoded = decode(dataset, ids, whitened)
    assert (again.key, decoded) == (key, 0)
    others = [
        decode(dataset, ids, replace(PREPROCESSING, size=16)),
        decode(dataset, ids, replace(PREPROCESSING, resize="pad")),
        decode(dataset, ids, replace(PREPROCESSING, interpolation="box")),
    ]
    assert [decoded for _, decoded in others] == [2, 2, 2]
    keys = {made.key for made, _ in [*others, decode(dataset, ids[::-1]), decode(dataset, ids[:1])]}
    assert len({key, *keys}) == 6


def test_row_keys_hash_an_images_own_pixels_and_the_geometry(dataset: Dataset) -> None:
    keys = pixel_keys(dataset.manifest, PREPROCESSING)
    assert keys.shape == (6, 32)
    assert keys.dtype == np.uint8
    text = '[32,"squash","bilinear",1]' + dataset.manifest["pixel_sha256"].iloc[4]
    assert keys[4].tobytes() == hashlib.sha256(text.encode()).digest()
    whitened = replace(PREPROCESSING, mean=(0.5, 0.5, 0.5), divide_by=1.0)
    assert np.array_equal(pixel_keys(dataset.manifest, whitened), keys)
    assert not (pixel_keys(dataset.manifest, replace(PREPROCESSING, size=33)) == keys).all(axis=1).any()
    assert pixel_keys(dataset.manifest[:0], PREPROCESSING).shape == (0, 32)


def test_changed_missing_and_broken_images_are_all_named_and_nothing_wrong_is_kept(dataset: Dataset) -> None:
    before = {path: path.read_bytes() for path in dataset.image_root.iterdir()}
    Image.new("RGB", (40, 50), "red").save(dataset.image_root / "lesion1.png")
    (dataset.image_root / "lesion3.png").unlink()
    (dataset.image_root / "lesion5.png").write_bytes(b"not an image")
    ids = ids_of(dataset)
    for total in (6, 3):  # what is right is not decoded again
        with pytest.raises(DataError) as caught:
            pixel_cache(dataset, ids, PREPROCESSING, folder=dataset.folder / "cache")
        message = caught.value.message
        assert f"3 of {total} images" in message
        assert "lesion1.png: changed" in message
        assert "lesion3.png (missing)" in message
        assert "lesion5.png (" in message
        assert caught.value.remedy
    assert len(in_cache(dataset)) == 1
    assert decode(dataset, ["lesion0", "lesion2", "lesion4"])[1] == 0
    for path, content in before.items():
        path.write_bytes(content)
    assert decode(dataset, ids)[1] == 3


def test_many_problems_are_counted_and_the_first_named(tmp_path: Path) -> None:
    many = of_rows(tmp_path, [(f"i{number}", f"i{number:02}.png", f"{number:064}") for number in range(40)])
    with pytest.raises(DataError, match=r"40 of 40 images .* i00.png \(missing\), .*i09.png .* and 30 more"):
        pixel_cache(many, ids_of(many), PREPROCESSING, folder=tmp_path / "cache")
    assert in_cache(many) == []


def test_unknown_images_and_no_images_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="lesion9 not in manifest"):
        decode(dataset, ["lesion0", "lesion9"])
    with pytest.raises(DataError, match="no images"):
        decode(dataset, [])


def test_a_segment_that_changed_is_decoded_again(dataset: Dataset) -> None:
    ids = ids_of(dataset)
    decode(dataset, ids)
    (path,) = (dataset.folder / "cache" / STORE).glob("*.seg")
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:-5] + b"\0" + whole[-4:], b""):
        path.write_bytes(broken)
        assert decode(dataset, ids)[1] == 6
        assert path.read_bytes() == whole


# Builds that end early, or beside another ------------------------------------------------------------------------


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = noise_dataset(tmp_path, 40)
    monkeypatch.setattr(store, "SEGMENT_ROWS", 8)

    def interrupt(done: int, total: int) -> None:
        assert total == 40
        if done == 20:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        pixel_cache(many, ids_of(many), PREPROCESSING, folder=tmp_path / "cache", on_progress=interrupt)
    assert threading.active_count() == threads
    left = decode(many, ids_of(many))[1]
    assert 0 < left <= 20  # also the finished part of the block that was interrupted


def test_an_interrupt_does_not_wait_for_what_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = noise_dataset(tmp_path, 48)
    begun: list[str] = []

    def slow(source: Path | bytes, *, name: str = "") -> LesionImage:
        begun.append(name)
        time.sleep(0.05 if len(begun) > 16 else 0)
        return open_image(source, name=name)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pixels, "open_image", slow)
    with pytest.raises(KeyboardInterrupt):
        pixel_cache(many, ids_of(many), PREPROCESSING, folder=tmp_path / "cache", on_progress=interrupt, workers=1)
    assert len(begun) < 32  # 16 were done when it came, and 16 more were given to the thread


BUILD = """
import sys, pandas as pd
from pathlib import Path
from dermkit.data.cache import pixels, store
from dermkit.images.preprocess import Preprocessing
from dermkit.data.manifest import Dataset
store.SEGMENT_ROWS = 4
folder = Path(sys.argv[1])
manifest = pd.read_csv(folder / "manifest.csv", dtype=str)
data = Dataset(folder, folder / "images", "made", (), manifest, "test", {})
image = Preprocessing(size=32, resize="squash", interpolation="bilinear", divide_by=255.0,
                      mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
pixels.pixel_cache(data, list(manifest["image_id"]), image, folder=folder / "cache",
                  on_progress=lambda done, total: print(done, flush=True))
"""


def start_build(dataset: Dataset) -> "subprocess.Popen[str]":
    dataset.manifest.to_csv(dataset.folder / "manifest.csv", index=False)
    return subprocess.Popen([sys.executable, "-c", BUILD, str(dataset.folder)], stdout=subprocess.PIPE, text=True)


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    many = noise_dataset(tmp_path, 200)
    build = start_build(many)
    assert build.stdout is not None
    for line in build.stdout:
        if int(line) >= 50:
            build.kill()
            break
    build.communicate()
    assert build.returncode == -signal.SIGKILL
    left = decode(many, ids_of(many))[1]
    assert 0 < left <= 200 - 48 + 4  # of 50, at most the last block was not yet written


def test_two_builds_of_one_cache_at_once(tmp_path: Path) -> None:
    many = noise_dataset(tmp_path, 60)
    builds = [start_build(many) for _ in range(2)]
    for build in builds:
        build.communicate(timeout=120)
        assert build.returncode == 0
    assert decode(many, ids_of(many))[1] == 0
    assert not [name for name in in_cache(many) if name.startswith(TEMP_PREFIX)]


def test_a_build_while_another_evicts_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = noise_dataset(tmp_path, 30)
    monkeypatch.setattr(store, "SEGMENT_ROWS", 2)
    removed: list[int] = []

    ended = threading.Event()

    def keep_removing() -> None:
        while not ended.is_set():
            removed.append(store.evict(tmp_path / "cache", 0))

    thread = threading.Thread(target=keep_removing)
    thread.start()
    try:
        for _ in range(3):
            decode(many, ids_of(many)[::-1])
    finally:
        ended.set()
        thread.join()
    assert sum(removed) > 0


def test_no_more_than_two_blocks_are_ahead_and_the_threads_are_as_many_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = noise_dataset(tmp_path, 60)
    monkeypatch.setattr(store, "SEGMENT_ROWS", 8)
    monkeypatch.setattr(pixels, "_IMAGES_PER_TASK", 1)
    begun: list[str] = []
    ahead: list[int] = []
    threads = set()

    def counted(source: Path | bytes, *, name: str = "") -> LesionImage:
        begun.append(name)
        threads.add(threading.get_ident())
        time.sleep(0.002)
        return open_image(source, name=name)

    def slow(done: int, total: int) -> None:
        time.sleep(0.003)
        ahead.append(len(begun) - done)

    monkeypatch.setattr(pixels, "open_image", counted)
    pixel_cache(many, ids_of(many), PREPROCESSING, folder=tmp_path / "cache", on_progress=slow, workers=3)
    assert len(begun) == 60
    assert 8 <= max(ahead) < 16
    assert len(threads) == 3
    assert threading.get_ident() not in threads


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_an_output_error_before_anything_is_decoded(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(source: Path | bytes, *, name: str = "") -> LesionImage:
        pytest.fail("decoded without room")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="MB needed"):
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        patch.setattr(pixels, "open_image", decoded)
        decode(dataset, ids_of(dataset))
    with files_no_larger_than(10_000), pytest.raises(OutputError, match="cannot be written"):
        decode(dataset, ids_of(dataset))
    assert in_cache(dataset) == []
    blocked = dataset.folder / "a-file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        pixel_cache(dataset, ids_of(dataset), PREPROCESSING, folder=blocked / "cache")


def test_a_whole_cache_is_read_without_writing_anything(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    decode(dataset, ids_of(dataset))
    shutil.rmtree(dataset.image_root)
    monkeypatch.setattr(segments, "verified_segments", {})
    for module, name in ((os, "utime"), (Path, "unlink"), (Path, "mkdir"), (tempfile, "mkstemp")):
        monkeypatch.setattr(module, name, refuse)
    made = pixel_cache(dataset, ids_of(dataset), PREPROCESSING, folder=dataset.folder / "cache")
    noise = np.random.default_rng(2).integers(0, 256, (42, 50, 3), dtype=np.uint8)
    assert np.array_equal(made.pixels[2], resize_pixels(noise, PREPROCESSING))


def test_a_cache_is_kept_within_its_size_but_for_what_this_process_used(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(dataset, ids_of(dataset))
    monkeypatch.setattr(segments, "verified_segments", {})  # as if an earlier process had done that
    kept, _ = decode(dataset, ids_of(dataset), replace(PREPROCESSING, size=16))
    assert evict_to_size(dataset.folder / "cache") == 0
    assert evict_to_size(dataset.folder / "cache", 0) > 6 * 32 * 32 * 3
    assert decode(dataset, ids_of(dataset), replace(PREPROCESSING, size=16))[1] == 0
    assert decode(dataset, ids_of(dataset))[1] == 6
    assert len(kept.pixels[:]) == 6
