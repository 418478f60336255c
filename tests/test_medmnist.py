"""MedMNIST files: the pixels come back as pictures, nothing is unpickled, and every lie of a header is told."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dermkit.data.importers import archives, medmnist
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.errors import DataError, UsageError
from dermkit.images.decode import open_image

Arrays = dict[str, NDArray[np.generic]]


def arrays(
    counts: tuple[int, int, int] = (9, 4, 5), side: int = 28, classes: int = 7, channels: int = 3
) -> Arrays:
    rng = np.random.default_rng(0)
    shape = (side, side, channels) if channels > 1 else (side, side)
    made: Arrays = {}
    for name, n in zip(("train", "val", "test"), counts, strict=True):
        made[f"{name}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        made[f"{name}_labels"] = (np.arange(n) % classes).astype(np.uint8)[:, None]
    return made


def save(path: Path, values: Arrays) -> Path:
    with path.open("wb") as stream:
        np.savez_compressed(stream, **values)  # type: ignore[arg-type]
    return path


def bring(path: Path) -> ImportOutcome:
    return import_dataset("medmnist", path, out=path.parent / "made")


def listed(path: Path) -> str:
    """Return the message that an import ends in; nothing was written."""
    with pytest.raises(DataError) as caught:
        bring(path)
    assert caught.value.exit_code == 3
    assert [item.name for item in (path.parent / "made").iterdir()] == [".lock"]
    return caught.value.message


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_comes_back(tmp_path: Path, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medmnist, "_BATCH_BYTES", 28 * 28 * channels * 2)
    values = arrays(channels=channels)
    outcome = bring(save(tmp_path / "dermamnist.npz", values))
    rows = outcome.dataset.manifest.set_index("path")
    assert len(rows) == 18
    for side in ("train", "val", "test"):
        for number, label in enumerate(values[f"{side}_labels"][:, 0]):
            name = medmnist.DERMAMNIST_CLASSES[label]
            path = f"{side}/{name}/{number:05d}.png"
            assert (rows.at[path, "label"], rows.at[path, "given_split"]) == (name, medmnist.SPLIT_OF_PREFIX[side])
            expected = values[f"{side}_images"][number]
            pixels = open_image(outcome.dataset.image_root / path).pixels
            assert (pixels == (expected if channels == 3 else expected[..., None])).all()
    assert outcome.dataset.image_root == tmp_path / "made" / "images"
    assert set(rows["width"]) == {28}
    assert dict(outcome.dataset.manifest["given_split"].value_counts()) == {"train": 9, "test": 5, "validation": 4}


def test_classes_have_names_only_where_they_are_known(tmp_path: Path) -> None:
    outcome = bring(save(tmp_path / "other.npz", arrays(classes=4)))
    assert outcome.dataset.class_names == ("0", "1", "2", "3")
    (tmp_path / "two").mkdir()
    outcome = bring(save(tmp_path / "two" / "my_DermaMNIST_28.npz", arrays(classes=4)))
    assert outcome.dataset.class_names == ("akiec", "bcc", "bkl", "df")
    notes = [item["code"] for item in outcome.dataset.notes["warnings"]]
    assert "class_names" in notes


def test_a_file_without_one_side(tmp_path: Path) -> None:
    values = {name: value for name, value in arrays().items() if "val" not in name}
    outcome = bring(save(tmp_path / "d.npz", {**values, "remark": np.zeros(3)}))
    assert set(outcome.dataset.manifest["given_split"]) == {"train", "test"}


def test_again_nothing_changes_and_another_file_is_refused(tmp_path: Path) -> None:
    first = bring(save(tmp_path / "d.npz", arrays()))
    times = {path: path.stat().st_mtime_ns for path in first.dataset.image_root.rglob("*.png")}
    torn = next(iter(times))
    torn.write_bytes(b"torn")
    again = bring(tmp_path / "d.npz")
    assert again.dataset.manifest_sha256 == first.dataset.manifest_sha256
    assert [path for path in times if path.stat().st_mtime_ns != times[path]] == [torn]
    with pytest.raises(UsageError, match=r"images of another file, d\.npz"):
        bring(save(tmp_path / "e.npz", arrays(side=29)))


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    save(folder / "dermamnist.npz", arrays())
    assert len(bring(folder).dataset.manifest) == 18
    save(folder / "second.npz", arrays())
    with pytest.raises(DataError, match=r"found: dermamnist\.npz, second\.npz"):
        bring(folder)
    with pytest.raises(DataError, match="does not exist"):
        bring(tmp_path / "none.npz")


# What is wrong ------------------------------------------------------------------------------------------------------


class Trap:
    """Whoever unpickles this makes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.array([Trap()] * 9, dtype=object)
    for name in ("train_images", "train_labels"):
        path = save(tmp_path / f"{name}.npz", {**arrays(), name: trap})
        assert "holds object" in listed(path)
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as packed:
        for name in arrays():
            packed.writestr(f"{name}.npy", b"\x80\x04cos\nmkdir\n(S'trapped'\ntR.")
    assert "3 problems" in listed(tmp_path / "raw.npz")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": np.zeros((9, 28, 28, 3), np.float32)}, "train: train_images.npy holds float32"),
        ({"train_images": np.zeros((9, 28, 28, 4), np.uint8)}, "4 channels"),
        ({"train_images": np.zeros((9, 28), np.uint8)}, r"shape \(9, 28\)"),
        ({"train_images": np.zeros((9, 4, 28, 3), np.uint8)}, "28 x 4"),
        ({"train_images": np.zeros((8, 28, 28, 3), np.uint8)}, "8 images and 9 labels"),
        ({"train_images": np.asfortranarray(np.zeros((9, 28, 28, 3), np.uint8))}, "Fortran"),
        ({"val_labels": np.zeros((4, 14), np.uint8)}, "val: val_labels is"),
        ({"val_labels": np.full((4, 1), -1)}, "class -1"),
        ({"val_labels": np.full((4, 1), 5000)}, "to 5000"),
        ({"val_labels": np.zeros((4, 1))}, "holds float64"),
        ({"val_labels": np.array(["mel"] * 4)}, "holds <U3"),
        ({"val_images": np.zeros((0, 28, 28, 3), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)}, "0 images"),
    ],
)
def test_arrays_of_another_kind_are_told(tmp_path: Path, changes: Arrays, words: str) -> None:
    import re

    message = listed(save(tmp_path / "d.npz", {**arrays(), **changes}))
    assert re.search(words, message), message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    values = {**arrays(), "train_images": np.zeros((9, 28, 28, 3)), "test_labels": np.zeros((1, 1), np.uint8)}
    del values["val_labels"]
    message = listed(save(tmp_path / "d.npz", values))
    assert "3 problems" in message
    assert all(word in message for word in ("train: ", "val: images and labels", "test: 5 images and 1 labels"))


def test_a_file_without_the_arrays(tmp_path: Path) -> None:
    assert "no arrays" in listed(save(tmp_path / "d.npz", {"x": np.zeros(3)}))


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def raw(path: Path, images: bytes, labels: bytes = header((9, 1)) + bytes(9)) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("train_images.npy", images)
        packed.writestr("train_labels.npy", labels)
    return path


@pytest.mark.parametrize(
    "images",
    [
        header((9, 28, 28, 3)),  # no pixels
        header((9, 28, 28, 3)) + bytes(9 * 28 * 28 * 3 - 1),
        header((9, 28, 28, 3)) + bytes(9 * 28 * 28 * 3 + 1),
        header((9, 10_000, 10_000, 3)),  # claims 2.7 GB
        header((9, 2**40, 2**40, 3)),
        header((-9, 28, 28, 3)) + bytes(9 * 28 * 28 * 3),
        b"\x93NUMPY\x07\x00" + bytes(200),
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 5000,
        b"",
    ],
)
def test_headers_that_lie(tmp_path: Path, images: bytes) -> None:
    assert "train: " in listed(raw(tmp_path / "d.npz", images))


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "UNCHECKED_TOTAL_BYTES", 1_000_000)
    images = header((2000, 28, 28, 3)) + bytes(2000 * 28 * 28 * 3)
    path = raw(tmp_path / "d.npz", images, header((2000, 1)) + bytes(2000))
    assert "a bomb" in listed(path)


def test_pixels_that_are_cut_or_spoilt_leave_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), dtype=np.uint8).tobytes()
    path = raw(tmp_path / "d.npz", header((9, 28, 28, 3)) + pixels)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + b"\0\0\0\0" + whole[5004:])
    assert "train_images.npy: " in listed(path)
    path.write_bytes(whole[:-40])
    assert "no complete zip" in listed(path)


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", arrays())
    with zipfile.ZipFile(path, "a") as packed, pytest.warns(UserWarning, match="Duplicate name"):
        packed.writestr("train_labels.npy", header((9, 1)) + bytes(9))
    assert "train_labels.npy is there 2 times" in listed(path)


def test_two_files_in_one_archive(tmp_path: Path) -> None:
    inner = save(tmp_path / "a.npz", arrays())
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        packed.write(inner, "a.npz")
        packed.write(inner, "b.npz")
    assert "one plain .npz is needed in it, found: a.npz, b.npz" in listed(tmp_path / "set.zip")


def test_a_linked_file_in_an_archive(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a.npz")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    assert "one plain .npz" in listed(tmp_path / "set.zip")


@given(st.binary(min_size=1, max_size=6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_spoilt_headers_never_end_in_a_fault(
    tmp_path_factory: pytest.TempPathFactory, patch: bytes, place: int
) -> None:
    folder = tmp_path_factory.mktemp("spoilt")
    images = bytearray(header((9, 8, 8, 3)) + bytes(9 * 8 * 8 * 3))
    at = place % 128
    images[at : at + len(patch)] = patch
    try:
        outcome = bring(raw(folder / "d.npz", bytes(images)))
    except DataError:
        return
    assert len(outcome.dataset.manifest) == struct.unpack("<H", struct.pack("<H", 9))[0]
