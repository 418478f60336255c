"""Copies planted on made photographs: each way is found, photographs of other lesions are not taken for copies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from dermkit.audit.near_duplicates.neighbours import find_neighbours
from dermkit.audit.near_duplicates.pairs import exact_duplicate_pairs, find_duplicates, find_duplicates_across
from dermkit.audit.near_duplicates.registration import guess_from_frames, prepare_images, register_images
from dermkit.audit.scan import scan as scan_room
from dermkit.audit.scan.descriptors import describe_images, shrink
from dermkit.audit.scan.scan import scan_images
from dermkit.data.groups import connect_rows
from dermkit.data.importers.run import import_dataset
from dermkit.data.manifest import Dataset
from dermkit.data.synthetic.duplicates import COPY_KINDS, plant_copy
from dermkit.data.synthetic.lesions import CLASSES, draw_photograph, make_lesion
from dermkit.errors import DataError
from dermkit.files import write_bytes
from dermkit.progress import Progress


def photograph(number: int, photo: int = 0, size: int = 160) -> NDArray[np.uint8]:
    label = list(CLASSES)[number % len(CLASSES)]
    truth = make_lesion(label, seed=1000 + number, lesion_id=f"L{number}", patient_id=f"P{number}", tone=0.3)
    return draw_photograph(truth, photo_seed=photo, size=size)


def save(folder: Path, name: str, data: bytes | NDArray[np.uint8]) -> None:
    path = folder / "all" / name
    if isinstance(data, bytes):
        write_bytes(path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data).save(path, quality=92)


def imported(folder: Path) -> Dataset:
    return import_dataset("folder", folder, out=folder.with_name(folder.name + "-set")).dataset


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, pd.DataFrame]:
    """Sixty lesions, one photograph each, and four copies of each kind."""
    folder = tmp_path_factory.mktemp("planted") / "images"
    rng = np.random.default_rng(3)
    for number in range(60):
        save(folder, f"o{number:03d}.jpg", photograph(number))
    rows = []
    for kind in COPY_KINDS:
        for number in rng.choice(60, 4, replace=False):
            pixels = np.asarray(Image.open(folder / "all" / f"o{number:03d}.jpg"))
            data, ending = plant_copy(pixels, kind, rng)
            save(folder, f"{kind}-{number}{ending}", data)
            rows.append((kind, f"all/o{number:03d}", f"all/{kind}-{number}"))
    return imported(folder), pd.DataFrame(rows, columns=["planted", "a", "b"])


def named(dataset: Dataset, pairs: pd.DataFrame) -> dict[frozenset[str], str]:
    ids = dataset.manifest["image_id"].to_numpy()
    return {frozenset((ids[a], ids[b])): kind for a, b, _, kind in pairs.itertuples(index=False)}


def test_every_kind_of_copy_is_found_and_nothing_else(planted: tuple[Dataset, pd.DataFrame]) -> None:
    dataset, truth = planted
    pairs = find_duplicates(dataset.manifest, scan_images(dataset))
    found = named(dataset, pairs)
    planted_pairs = list(zip(truth["planted"], truth["a"], truth["b"], strict=True))
    assert [row for row in planted_pairs if frozenset(row[1:]) not in found] == []
    origin = dict(zip(truth["b"], truth["a"], strict=True))
    assert all(len({origin.get(name, name) for name in pair}) == 1 for pair in found)
    said = {"rotated90": "rotated"}
    wrong = [(kind, found[frozenset((a, b))]) for kind, a, b in planted_pairs]
    assert [both for both in wrong if both[1] != said.get(both[0], both[0])] == []
    assert (pairs["distance"].to_numpy()[(pairs["kind"] == "exact").to_numpy()] == 0).all()
    assert (pairs["distance"].to_numpy()[(pairs["kind"] != "exact").to_numpy()] > 0).all()
    assert (pairs["a"] < pairs["b"]).all()


def test_another_photograph_of_a_lesion_is_no_copy(tmp_path: Path) -> None:
    for number in range(12):
        for photo in (0, 1):
            save(tmp_path / "images", f"o{number:03d}-{photo}.jpg", photograph(number, photo))
    dataset = imported(tmp_path / "images")
    assert find_duplicates(dataset.manifest, scan_images(dataset)).empty


def test_plain_pictures_are_not_copies_of_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, level in enumerate((0, 40, 120, 121, 200, 255)):
        noise = rng.integers(-1, 2, (80, 80, 3))
        save(tmp_path / "images", f"plain{number}.png", (level + noise).clip(0, 255).astype(np.uint8))
    dataset = imported(tmp_path / "images")
    assert find_duplicates(dataset.manifest, scan_images(dataset)).empty


def test_a_copy_of_a_copy_and_its_identical_twin_are_all_paired(tmp_path: Path) -> None:
    pixels = photograph(5)
    half = np.asarray(Image.fromarray(pixels).resize((90, 90), Image.Resampling.LANCZOS))
    for name, data in {"a.png": pixels, "b.png": pixels, "c.png": half, "d.png": photograph(6)}.items():
        save(tmp_path / "images", name, data)
    dataset = imported(tmp_path / "images")
    found = named(dataset, find_duplicates(dataset.manifest, scan_images(dataset)))
    assert found == {
        frozenset(("all/a", "all/b")): "exact",
        frozenset(("all/a", "all/c")): "resized",
        frozenset(("all/b", "all/c")): "resized",
    }


def test_many_identical_pictures_stay_in_one_group_without_all_pairs(tmp_path: Path) -> None:
    for number in range(40):
        save(tmp_path / "images", f"x{number:02d}.png", photograph(1))
    dataset = imported(tmp_path / "images")
    pairs = find_duplicates(dataset.manifest, scan_images(dataset))
    assert len(pairs) == 39
    assert connect_rows(40, pairs["a"].to_numpy(), pairs["b"].to_numpy()).tolist() == [0] * 40


def test_common_pictures_of_two_sets_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(8):
        save(tmp_path / "one", f"o{number}.jpg", photograph(number))
        save(tmp_path / "two", f"s{number}.jpg", photograph(100 + number))
    made = {"exact": 2, "cropped": 3, "rotated": 4, "flipped": 5}
    for kind, number in made.items():
        pixels = np.asarray(Image.open(tmp_path / "one" / "all" / f"o{number}.jpg"))
        data, ending = plant_copy(pixels, kind, rng)
        save(tmp_path / "two", f"{kind}{ending}", data)
    one, two = imported(tmp_path / "one"), imported(tmp_path / "two")
    pairs = find_duplicates_across((one.manifest, two.manifest), (scan_images(one), scan_images(two)))
    found = {
        (one.manifest["image_id"][a], two.manifest["image_id"][b], kind)
        for a, b, _, kind in pairs.itertuples(index=False)
    }
    assert found == {(f"all/o{number}", f"all/{kind}", kind) for kind, number in made.items()}


@pytest.mark.parametrize("transform", list(Image.Transpose))
def test_a_frame_is_described_alike_and_laid_exactly_after_any_flip(transform: Image.Transpose) -> None:
    pixels = photograph(3, size=120)[:, :90]
    turned = np.asarray(Image.fromarray(pixels).transpose(transform))
    smalls = [shrink(pixels), shrink(turned)]
    canvas, tint, square = (np.stack([getattr(s, name) for s in smalls]) for name in ("canvas", "tint", "square"))
    size = np.array([[s.width, s.height] for s in smalls])
    made = describe_images(canvas, tint, size, square)
    strange = shrink(photograph(4))
    whole = np.array([[strange.width, strange.height]])
    other = describe_images(strange.canvas[None], strange.tint[None], whole, strange.square[None])
    apart = np.linalg.norm(made.global_descriptor[0] - made.global_descriptor[1])
    assert apart < 0.5 < np.linalg.norm(made.global_descriptor[0] - other.global_descriptor[0])
    guess, agree = guess_from_frames((square[:1], square[1:]), (size[:1], size[1:]))
    pictures = prepare_images(canvas, size, is_rough=False)
    match = register_images(pictures.select(np.array([0])), pictures.select(np.array([1])), guess, is_rough=False)
    assert agree[0] > 0.99
    assert match.full_similarity.correlation[0] > 0.99
    assert match.full_similarity.rms_difference[0] < 2
    # Where a point of the first lies in the second is known exactly.
    corner = match.matrix[0] @ np.array([10.0, 5.0, 1.0])
    width, height = size[0] - 1
    true = {
        Image.Transpose.FLIP_LEFT_RIGHT: (width - 10, 5), Image.Transpose.FLIP_TOP_BOTTOM: (10, height - 5),
        Image.Transpose.ROTATE_90: (5, width - 10), Image.Transpose.ROTATE_180: (width - 10, height - 5),
        Image.Transpose.ROTATE_270: (height - 5, 10), Image.Transpose.TRANSPOSE: (5, 10),
        Image.Transpose.TRANSVERSE: (height - 5, width - 10),
    }[transform]  # fmt: skip
    assert np.abs(corner - np.array(true)).max() < 0.6


def test_neighbours_are_those_of_a_complete_search() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((3000, 24)).astype(np.float32)
    vectors = np.concatenate([base, base[:300] + rng.standard_normal((300, 24)).astype(np.float32) * 0.02])
    owner = np.arange(len(vectors))
    found = find_neighbours(vectors, owner, max_distance=0.5, max_neighbours=8)
    tree = cKDTree(vectors.astype(np.float64))
    true = {tuple(sorted(pair)) for pair in tree.query_pairs(0.5)}
    assert len(true) >= 300
    assert {(int(a), int(b)) for a, b in zip(found.first, found.second, strict=True)} == true
    lengths = np.linalg.norm(vectors[found.first] - vectors[found.second], axis=1)
    assert np.abs(lengths - found.distance).max() < 1e-3


def test_vectors_of_one_owner_are_never_paired_and_the_nearest_are_kept() -> None:
    vectors = np.linspace(0, 1, 400, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    assert len(find_neighbours(vectors, np.zeros(400, np.int64), max_distance=1.0, max_neighbours=4).first) == 0
    found = find_neighbours(vectors, np.arange(400), max_distance=1.0, max_neighbours=2)
    nearest = set(zip(range(399), range(1, 400), strict=True))
    pairs = {(int(a), int(b)) for a, b in zip(found.first, found.second, strict=True)}
    # A neighbour that every tree parts is lost; on a line that is rare.
    assert len(nearest - pairs) <= 4
    assert len(pairs) < 400 * 6


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_vectors_are_no_trouble(count: int) -> None:
    found = find_neighbours(np.zeros((count, 4), np.float32), np.arange(count), max_distance=1.0, max_neighbours=8)
    assert len(found.first) == count * (count - 1) // 2


# The scan -----------------------------------------------------------------------------------------------------------


def small_set(tmp_path: Path, n: int = 12) -> Dataset:
    for number in range(n):
        save(tmp_path / "images", f"o{number:03d}.jpg", photograph(number, size=64))
    return imported(tmp_path / "images")


def test_a_stopped_scan_goes_on_and_a_smaller_manifest_reuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_set(tmp_path)
    whole = scan_images(dataset, folder=tmp_path / "whole", workers=1)
    monkeypatch.setattr(scan_room, "IMAGES_PER_BLOCK", 4)
    looked: list[str] = []
    look = scan_room._scan_file

    def counted(path: Path, file_sha256: str) -> object:
        looked.append(path.name)
        if len(looked) == 7:
            raise KeyboardInterrupt
        return look(path, file_sha256)

    monkeypatch.setattr(scan_room, "_scan_file", counted)
    with pytest.raises(KeyboardInterrupt):
        scan_images(dataset, workers=1)
    again = scan_images(dataset, workers=1)
    assert looked[7:] == looked[4:6] + sorted(path.name for path in (tmp_path / "images" / "all").iterdir())[6:]
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert all(
        (getattr(again, name) == getattr(whole, name)).all()
        for name in ("canvas", "patch_descriptors", "global_descriptor", "polar_patches")
    )
    before = len(looked)
    fewer = replace(dataset, manifest=dataset.manifest.iloc[[7, 2]].reset_index(drop=True))
    taken = scan_images(fewer, workers=1)
    assert len(looked) == before
    assert taken.store_rows.tolist() == [7, 2]
    pd.testing.assert_frame_equal(taken.table, whole.table.iloc[[7, 2]].reset_index(drop=True))


def test_files_that_changed_since_the_import_are_named(tmp_path: Path) -> None:
    dataset = small_set(tmp_path, 4)
    folder = tmp_path / "images" / "all"
    (folder / "o000.jpg").unlink()
    (folder / "o001.jpg").write_bytes(b"no image")
    save(tmp_path / "images", "o002.jpg", photograph(50, size=64))
    assert scan_images(dataset).table["state"].tolist() == ["missing", "refused", "changed", ""]
    assert find_duplicates(dataset.manifest, scan_images(dataset)).empty


def test_a_set_without_its_images_is_refused(tmp_path: Path) -> None:
    dataset = small_set(tmp_path, 3)
    (tmp_path / "images").rename(tmp_path / "away")
    with pytest.raises(DataError, match="none of the 3 images can be read"):
        scan_images(dataset)


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    dataset = small_set(tmp_path, 40)
    steps: list[int] = []
    watch = Progress(step=lambda _what, done, _total: steps.append(done))
    one = scan_images(dataset, folder=tmp_path / "one", workers=1, progress=watch)
    two = scan_images(dataset, folder=tmp_path / "two", workers=3)
    assert steps == [32, 40]
    assert all(
        (getattr(one, name) == getattr(two, name)).all()
        for name in ("canvas", "patch_descriptors", "global_descriptor", "keypoints")
    )
    pd.testing.assert_frame_equal(one.table, two.table)


def test_copies_are_the_same_in_any_order_of_rows(planted: tuple[Dataset, pd.DataFrame]) -> None:
    dataset, _ = planted
    table = scan_images(dataset)
    order = np.random.default_rng(5).permutation(len(dataset.manifest))
    shuffled = replace(dataset, manifest=dataset.manifest.iloc[order].reset_index(drop=True))
    one, two = find_duplicates(dataset.manifest, table), find_duplicates(shuffled.manifest, scan_images(shuffled))
    assert set(named(dataset, one)) == set(named(shuffled, two))


def test_of_many_identical_pictures_every_label_and_side_is_seen() -> None:
    label = pd.Series(["nv"] * 50 + ["mel"] * 50 + ["nv"])
    side = pd.Series([""] + ["train"] * 49 + ["test"] * 50 + ["train"])
    pairs = exact_duplicate_pairs(pd.Series(["same"] * 100 + [""]), label, side)
    assert len(pairs) < 400
    a, b = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    assert (a < b).all()
    across = side.to_numpy()[a] != side.to_numpy()[b]
    contradicted = label.to_numpy()[a] != label.to_numpy()[b]
    assert set(np.r_[a[across], b[across]]) == set(range(100))
    assert set(np.r_[a[contradicted], b[contradicted]]) == set(range(100))


def test_a_file_that_comes_back_or_is_written_anew_is_looked_at_again(tmp_path: Path) -> None:
    dataset = small_set(tmp_path, 5)
    (tmp_path / "images").rename(tmp_path / "away")
    with pytest.raises(DataError):
        scan_images(dataset)
    (tmp_path / "away").rename(tmp_path / "images")
    assert scan_images(dataset).table["state"].tolist() == [""] * 5
    save(tmp_path / "images", "o002.jpg", photograph(50, size=64))
    assert scan_images(dataset).table["state"].tolist() == ["", "", "changed", "", ""]
    # A file that changed is not what its hash of the import says.
    save(tmp_path / "images", "o002.jpg", photograph(1, size=64))
    assert find_duplicates(dataset.manifest, scan_images(dataset))["kind"].tolist() == ["reencoded"]


def test_a_store_begun_in_another_order_gives_each_image_its_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_set(tmp_path, 9)
    whole = scan_images(dataset, folder=tmp_path / "whole")
    monkeypatch.setattr(scan_room, "IMAGES_PER_BLOCK", 4)
    scan_images(dataset)
    (dataset.folder / "audit" / "scan" / "block-00001.csv").unlink()
    order = np.array([8, 3, 5, 0, 1, 7, 2, 6, 4])
    mixed = replace(dataset, manifest=dataset.manifest.iloc[order].reset_index(drop=True))
    pd.testing.assert_frame_equal(scan_images(mixed).table, whole.table.iloc[order].reset_index(drop=True))


@pytest.mark.parametrize("lost", ["files.csv", "canvas.npy", "scan.json"])
def test_a_broken_store_is_made_anew(tmp_path: Path, lost: str) -> None:
    dataset = small_set(tmp_path, 3)
    before = scan_images(dataset).table
    (dataset.folder / "audit" / "scan" / lost).unlink()
    pd.testing.assert_frame_equal(scan_images(dataset).table, before)
