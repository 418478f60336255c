"""Caches: decoded once, found again, never believed when wrong, never half written."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from dermkit.data.cache import PixelCache, cached_array, evict, pixel_cache
from dermkit.data.images import Preprocessing, open_image, resize_pixels
from dermkit.data.manifest import Dataset, LesionClass
from dermkit.errors import DataError, OutputError
from dermkit.files import TEMP_PREFIX

PREPROCESSING = Preprocessing(
    size=32, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six images of noise, of different sizes, with the manifest columns that the cache reads."""
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number in range(6):
        path = images / f"lesion{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        rows.append((f"lesion{number}", path.name, open_image(path).pixel_sha256))
    manifest = pd.DataFrame(rows, columns=["image_id", "path", "pixel_sha256"])
    classes = (LesionClass("nevus", "nevus", "benign"),)
    return Dataset(tmp_path, images, "made", classes, manifest, "test", {})


def decode(
    dataset: Dataset, ids: list[str], preprocessing: Preprocessing = PREPROCESSING
) -> tuple[PixelCache, int]:
    """Return the cache and how many images were decoded for it."""
    calls: list[tuple[int, int]] = []
    made = pixel_cache(
        dataset, ids, preprocessing, folder=dataset.folder / "cache", on_progress=lambda *at: calls.append(at)
    )
    assert calls == [(done, len(ids)) for done in range(1, len(calls) + 1)]
    return made, len(calls)


def test_pixels_are_those_of_the_gate_in_the_order_asked_for_and_decoded_once(dataset: Dataset) -> None:
    ids = ["lesion4", "lesion0", "lesion3"]
    made, decoded = decode(dataset, ids)
    assert decoded == 3
    assert made.index == {"lesion4": 0, "lesion0": 1, "lesion3": 2}
    assert made.pixels.shape == (3, 32, 32, 3)
    assert made.pixels.dtype == np.uint8
    for name, row in made.index.items():
        expected = resize_pixels(open_image(dataset.path_of(name)).pixels, PREPROCESSING)
        assert np.array_equal(made.pixels[row], expected)
    with pytest.raises(ValueError, match="read-only"):
        made.pixels[0] = 0

    again, decoded = decode(dataset, ids)
    assert decoded == 0
    assert again.key == made.key
    assert np.array_equal(again.pixels, made.pixels)


def test_the_key_follows_geometry_and_images_but_not_the_normalisation(dataset: Dataset) -> None:
    ids = ["lesion0", "lesion1"]
    key = decode(dataset, ids)[0].key
    whitened = replace(PREPROCESSING, mean=(0.5, 0.5, 0.5), divide_by=1.0)
    assert decode(dataset, ids, whitened)[0].key == key
    others = [
        decode(dataset, ids, replace(PREPROCESSING, size=16))[0].key,
        decode(dataset, ids, replace(PREPROCESSING, resize="pad"))[0].key,
        decode(dataset, ids, replace(PREPROCESSING, interpolation="box"))[0].key,
        decode(dataset, ids[::-1])[0].key,
        decode(dataset, ids[:1])[0].key,
    ]
    assert len({key, *others}) == 6


def test_changed_missing_and_broken_images_are_all_named_and_nothing_is_left(dataset: Dataset) -> None:
    Image.new("RGB", (40, 50), "red").save(dataset.images / "lesion1.png")
    (dataset.images / "lesion3.png").unlink()
    (dataset.images / "lesion5.png").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        decode(dataset, [f"lesion{number}" for number in range(6)])
    message = caught.value.message
    assert "3 of 6 images" in message
    assert "lesion1.png: changed" in message
    assert "lesion3.png (missing)" in message
    assert "lesion5.png (" in message
    assert caught.value.remedy
    assert list((dataset.folder / "cache").iterdir()) == []


def test_unknown_images_and_no_images_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="lesion9 not in manifest"):
        decode(dataset, ["lesion0", "lesion9"])
    with pytest.raises(DataError, match="no images"):
        decode(dataset, [])


def count_up(array: NDArray[Any]) -> None:
    array[...] = np.arange(array.size).reshape(array.shape)


def get(folder: Path, key: str = "features-1", shape: tuple[int, ...] = (4, 3)) -> tuple[NDArray[Any], bool]:
    """Return the array and whether it had to be made."""
    made = []

    def fill(array: NDArray[Any]) -> None:
        made.append(array.shape)
        count_up(array)

    return cached_array(folder, key, shape, "float32", fill), bool(made)


def test_an_array_is_made_once_and_is_an_ordinary_npy(tmp_path: Path) -> None:
    array, made = get(tmp_path)
    assert made
    assert array.tolist() == np.arange(12).reshape(4, 3).tolist()
    assert np.array_equal(np.load(tmp_path / "features-1.npy"), array)
    assert not get(tmp_path)[1]


def test_a_wrong_file_is_made_again(tmp_path: Path) -> None:
    data, card = tmp_path / "features-1.npy", tmp_path / "features-1.json"
    get(tmp_path)
    whole, facts = data.read_bytes(), json.loads(card.read_text())

    def planted(path: Path, content: bytes | None) -> bool:
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        array, made = get(tmp_path)
        assert array.tolist() == np.arange(12).reshape(4, 3).tolist()
        return made

    assert planted(data, whole[:-4])
    assert planted(data, whole[:-1] + b"\x01")
    assert planted(data, b"")
    assert planted(data, None)
    assert planted(card, None)
    assert planted(card, b"{")
    assert planted(card, json.dumps({**facts, "key": "features-2"}).encode())
    assert planted(card, json.dumps({**facts, "format": 0}).encode())
    assert not planted(data, whole)
    assert get(tmp_path, shape=(3, 4))[0].shape == (3, 4)


def test_a_failed_fill_leaves_the_earlier_file_and_no_other(tmp_path: Path) -> None:
    def fail(array: NDArray[Any]) -> None:
        array[0] = 1
        raise KeyboardInterrupt

    get(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cached_array(tmp_path, "features-2", (4, 3), "float32", fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features-1.json", "features-1.npy"]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_an_output_error_before_anything_is_computed(tmp_path: Path) -> None:
    with files_no_larger_than(100_000), pytest.raises(OutputError, match="cannot be written"):
        cached_array(tmp_path, "large", (100, 1000), "float32", lambda _: pytest.fail("computed without room"))
    with pytest.raises(OutputError, match="MB needed"):
        cached_array(tmp_path, "larger", (2**50,), "float32", count_up)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(TEMP_PREFIX)]
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        get(blocked / "cache")


@pytest.mark.parametrize("key", ["../outside", "", "a/b"])
def test_a_key_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a cache key"):
        get(tmp_path / "cache", key)


def test_eviction_removes_the_least_recently_used_and_nothing_else(tmp_path: Path) -> None:
    for age, key in enumerate(["c", "b", "a"]):
        get(tmp_path, key)
        os.utime(tmp_path / f"{key}.json", (1000 + age, 1000 + age))
    size = (tmp_path / "a.npy").stat().st_size
    (tmp_path / "notes.json").write_text('{"format": 1}')
    np.save(tmp_path / "foreign.npy", np.zeros(1000))
    kept = get(tmp_path, "c")[0]  # used again: now the youngest

    assert evict(tmp_path, 3 * size) == 0
    assert evict(tmp_path, 2 * size) == size
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.npy", "a.json", "c.npy", "c.json", "notes.json", "foreign.npy"}
    assert evict(tmp_path, 0) == 2 * size
    assert kept[3, 2] == 11.0  # an open map stays readable
    assert evict(tmp_path / "absent", 0) == 0
