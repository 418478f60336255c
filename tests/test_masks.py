"""Lesion masks as a part of a data set: what is used, what is refused and why, and who takes them unasked."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from conftest import Invoke
from dermkit.data.manifest import LOCATION, Dataset
from dermkit.data.masks import MASKS_TABLE, masks_of_dataset
from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.errors import DataError, UsageError
from dermkit.explanation.image_masks import ImageMasks
from dermkit.explanation.run_maps import update_heat_maps
from dermkit.images.lesion_masks import LesionMasks, read_mask
from dermkit.prediction.inputs import ImageRef
from dermkit.progress import Progress
from dermkit.runs.dataset_masks import masks_of_run


def save_mask(path: Path, size: tuple[int, int], *, radius: float = 0.25) -> None:
    """Write a disc in the middle, white on black. size: width and height. radius: a part of the shorter side."""
    width, height = size
    y, x = np.ogrid[:height, :width]
    reach = radius * min(size)
    disc = (x + 0.5 - width / 2) ** 2 + (y + 0.5 - height / 2) ** 2 <= reach**2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(disc.astype(np.uint8) * 255).save(path)


def mask_images(dataset: Dataset, masks: Path, image_ids: Sequence[str], *, radius: float = 0.25) -> Path:
    """Write a mask for some images, named as HAM10000's; returns their folder."""
    frame = dataset.manifest
    sizes = dict(
        zip(frame["image_id"], zip(frame["width"].tolist(), frame["height"].tolist(), strict=True), strict=True)
    )
    for image_id in image_ids:
        save_mask(masks / f"{image_id}_segmentation.png", sizes[image_id], radius=radius)
    return masks


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return images in the layout of HAM10000, eight lesions with one photograph each."""
    folder = tmp_path_factory.mktemp("ham") / "images"
    make_dataset_folder(
        folder, lesions_per_class={"nevus": 4, "melanoma": 4}, photos_per_lesion=(1, 1), size=40, seed=8,
        layout="ham10000",
    )  # fmt: skip
    return folder


def imported(images: Path, out: Path, masks: Path | None = None, *, layout: str = "ham10000") -> dk.ImportOutcome:
    return dk.import_dataset(layout, images, out=out, masks=masks)


def test_masks_are_listed_with_their_area_or_the_reason_why_they_are_refused(images: Path, tmp_path: Path) -> None:
    dataset = imported(images, tmp_path / "first").dataset
    good, small, black, broken, *_without = dataset.manifest["image_id"]
    masks = mask_images(dataset, tmp_path / "masks", [good, small])
    save_mask(masks / f"{Path(small).name}_segmentation.png", (20, 20))
    if (masks / f"{small}_segmentation.png").exists():
        save_mask(masks / f"{small}_segmentation.png", (20, 20))
    save_mask(masks / f"{black}.png", (40, 40), radius=0)
    (masks / f"{broken}_mask.png").write_bytes(b"no image")
    outcome = imported(images, tmp_path / "data", masks)
    rows = {row.image_id: row for row in outcome.masks}
    assert list(rows) == [good, small, black, broken], "an image without a mask has no row"
    assert rows[good].reason == "" and rows[good].lesion_area == pytest.approx(np.pi / 16, abs=0.02)
    assert "is 20 x 20 pixels, and its image is 40 x 40" in rows[small].reason
    assert "marks no pixel as lesion" in rows[black].reason and "is no mask" in rows[broken].reason
    table = pd.read_csv(tmp_path / "data" / MASKS_TABLE, keep_default_na=False)
    assert table["image_id"].tolist() == list(rows) and table["lesion_area"].tolist()[1:] == ["", "", ""]
    usable = masks_of_dataset(tmp_path / "data")
    assert usable is not None and usable.paths is not None and list(usable.paths) == [good]
    assert dk.load_dataset(tmp_path / "data").mask_root == masks.resolve()
    assert masks_of_dataset(tmp_path / "first") is None
    assert outcome.dataset.manifest_sha256 == dataset.manifest_sha256, "masks change no run"


def test_a_mask_that_no_longer_fits_counts_as_none(images: Path, tmp_path: Path) -> None:
    dataset = imported(images, tmp_path / "first").dataset
    image_id = dataset.manifest["image_id"].iloc[0]
    masks = mask_images(dataset, tmp_path / "masks", [image_id])
    imported(images, tmp_path / "data", masks)
    usable = masks_of_dataset(tmp_path / "data")
    assert usable is not None
    name = f"{image_id}.jpg"
    assert usable.mask(name, (40, 40)) is not None and usable.mask(name, (41, 40)) is None
    assert usable.mask("other.jpg", (40, 40)) is None
    (masks / f"{image_id}_segmentation.png").unlink()
    assert usable.mask(name, (40, 40)) is None
    shutil.rmtree(masks)
    assert masks_of_dataset(tmp_path / "data") is None


def test_an_import_without_masks_keeps_those_of_the_earlier_one(images: Path, tmp_path: Path) -> None:
    dataset = imported(images, tmp_path / "data").dataset
    ids = dataset.manifest["image_id"].tolist()
    masks = mask_images(dataset, tmp_path / "masks", ids[:3])
    assert len(imported(images, tmp_path / "data", masks).masks) == 3
    before = (tmp_path / "data" / MASKS_TABLE).read_bytes()
    assert len(imported(images, tmp_path / "data").masks) == 3
    mask_images(dataset, masks, ids[3:4])
    assert len(imported(images, tmp_path / "data").masks) == 4, "a mask that was added since"
    shutil.rmtree(masks)
    assert imported(images, tmp_path / "data").masks == ()
    assert (tmp_path / "data" / MASKS_TABLE).read_bytes() != before
    assert dk.load_dataset(tmp_path / "data").mask_root == masks.resolve(), "they may come back"


def test_masks_that_nobody_named_stop_no_import(images: Path, tmp_path: Path, invoke: Invoke) -> None:
    source = shutil.copytree(images, tmp_path / "images")
    dataset = imported(source, tmp_path / "data").dataset
    masks = mask_images(dataset, tmp_path / "masks", dataset.manifest["image_id"].tolist()[:2])
    imported(source, tmp_path / "data", masks)
    for mask in list(masks.rglob("*.png")):
        save_mask(mask, (9, 9))
    code, out, messages = invoke("import", "ham10000", source, "--out", tmp_path / "data")
    assert code == 0, messages
    assert "warning: the lesion masks of the earlier import are dropped" in out and "none of 2 masks" in out
    assert str(tmp_path) not in (tmp_path / "data" / "dataset.json").read_text()
    assert dk.load_dataset(tmp_path / "data").mask_root is None
    assert masks_of_dataset(tmp_path / "data") is None and not (tmp_path / "data" / MASKS_TABLE).exists()
    with pytest.raises(DataError, match="none of 2 masks"):
        imported(source, tmp_path / "data", masks)


def test_masks_outlive_a_cleaning(tmp_path: Path) -> None:
    make_dataset_folder(
        tmp_path / "images",
        lesions_per_class={"nevus": 6, "melanoma": 6},
        photos_per_lesion=(1, 1),
        size=40,
        seed=3,
    )
    first = imported(tmp_path / "images", tmp_path / "first", layout="folder").dataset
    copied = Path(first.image_path(first.manifest["image_id"].iloc[0]))
    shutil.copy(copied, copied.with_name(f"copy{copied.suffix}"))
    masks = mask_images(first, tmp_path / "masks", first.manifest["image_id"].tolist())
    dataset = imported(tmp_path / "images", tmp_path / "data", masks, layout="folder").dataset
    dk.audit_dataset(dataset, clean=True)
    cleaned = dk.load_dataset(tmp_path / "data")
    usable = masks_of_dataset(tmp_path / "data")
    assert len(cleaned.manifest) < len(dataset.manifest)
    assert usable is not None and usable.paths is not None
    kept = [image_id for image_id in cleaned.manifest["image_id"] if image_id in usable.paths]
    assert len(kept) >= len(cleaned.manifest) - 1


def test_one_mask_for_two_images_by_its_name_is_refused_for_both(tmp_path: Path) -> None:
    make_dataset_folder(
        tmp_path / "images",
        lesions_per_class={"nevus": 2, "melanoma": 2},
        photos_per_lesion=(1, 1),
        size=40,
        seed=3,
    )
    for folder in sorted(path for path in (tmp_path / "images").iterdir() if path.is_dir()):
        first = min(folder.iterdir())
        first.rename(folder / f"one{first.suffix}")
    save_mask(tmp_path / "masks" / "one.png", (40, 40))
    with pytest.raises(DataError, match=r"none of 2 masks can be used; first: one\.png belongs to several images"):
        imported(tmp_path / "images", tmp_path / "data", tmp_path / "masks", layout="folder")
    assert not (tmp_path / "data" / "dataset.json").exists()
    save_mask(tmp_path / "masks" / "nevus" / "one.png", (40, 40))
    outcome = imported(tmp_path / "images", tmp_path / "data", tmp_path / "masks", layout="folder")
    assert {row.image_id: row.reason for row in outcome.masks} == {"melanoma/one": "", "nevus/one": ""}


def test_masks_that_cannot_be_meant_are_refused_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is no folder"):
        imported(images, tmp_path / "data", tmp_path / "gone")
    with pytest.raises(DataError, match="holds no mask of these images"):
        imported(images, tmp_path / "data", tmp_path / "empty")
    make_dataset_folder(
        tmp_path / "images",
        lesions_per_class={"nevus": 2, "melanoma": 2},
        photos_per_lesion=(1, 1),
        size=40,
        seed=3,
    )
    save_mask(tmp_path / "images" / "masks" / "one.png", (40, 40))
    with pytest.raises(UsageError, match="lies in the folder of the images"):
        imported(tmp_path / "images", tmp_path / "data", tmp_path / "images" / "masks", layout="folder")
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_a_table_that_is_broken_or_leads_outside_is_not_used(images: Path, tmp_path: Path) -> None:
    dataset = imported(images, tmp_path / "data").dataset
    first, second = dataset.manifest["image_id"].iloc[:2]
    imported(images, tmp_path / "data", mask_images(dataset, tmp_path / "masks", [first, second]))
    table = tmp_path / "data" / MASKS_TABLE
    table.write_text(table.read_text().replace(f"{second}_segmentation.png", "../secret.png"))
    usable = masks_of_dataset(tmp_path / "data")
    assert usable is not None and usable.paths is not None and list(usable.paths) == [first]
    table.write_text("image_id,path\na,b\n")
    with pytest.raises(DataError, match="cannot be read as a table of masks"):
        masks_of_dataset(tmp_path / "data")


def test_a_location_of_the_first_format_has_no_masks(tmp_path: Path) -> None:
    (tmp_path / "location.json").write_text('{"format": 1, "images": "/images"}')
    assert LOCATION.read(tmp_path) == {"images": "/images", "masks": "", "dataset": ""}
    assert masks_of_dataset(tmp_path) is None and masks_of_run(tmp_path) is None


@pytest.fixture
def masked_run(trained: Path, binary: Path, tmp_path: Path) -> Path:
    """Return a copy of a run whose data set has got masks of all its images since."""
    original = dk.load_dataset(binary)
    masks = mask_images(original, tmp_path / "masks", original.manifest["image_id"].tolist())
    data = shutil.copytree(binary, tmp_path / "data")
    imported(original.image_root, data, masks, layout="folder")
    run = shutil.copytree(trained, tmp_path / "run")
    assert LOCATION.read(run)["dataset"] == str(binary.resolve())
    LOCATION.write(run, {**LOCATION.read(run), "dataset": str(data)})
    return run


def test_reports_take_the_masks_of_the_data_set_unasked(masked_run: Path, binary: Path) -> None:
    root = dk.load_dataset(binary).image_root
    update_heat_maps(masked_run, root, device="cpu")
    table = pd.read_csv(masked_run / "heat_maps" / "heat_maps.csv")
    assert table["mask_inside"].between(0, 1).all() and table["mask_area"].between(0.1, 0.3).all()
    written = (masked_run / "heat_maps" / "heat_maps.csv").stat().st_mtime_ns
    update_heat_maps(masked_run, root, device="cpu")
    assert (masked_run / "heat_maps" / "heat_maps.csv").stat().st_mtime_ns == written, "they are of these masks"
    dataset = dk.load_dataset(binary)
    mask_images(dataset, masked_run.parent / "masks", dataset.manifest["image_id"].tolist(), radius=0.4)
    update_heat_maps(masked_run, root, device="cpu")
    redrawn = pd.read_csv(masked_run / "heat_maps" / "heat_maps.csv")
    assert (redrawn["mask_area"] > table["mask_area"].max()).all(), "they were drawn anew"


@pytest.mark.parametrize("is_given", [True, False])
def test_masks_that_were_drawn_anew_are_others(tmp_path: Path, is_given: bool) -> None:
    save_mask(tmp_path / "a.png", (40, 40))
    masks = LesionMasks(tmp_path, None if is_given else {"a": "a.png"})
    before = masks.identity
    assert masks.identity == before
    save_mask(tmp_path / "a.png", (40, 40), radius=0.4)
    assert masks.identity != before


def test_a_black_and_white_mask_of_a_large_photograph_is_read(tmp_path: Path) -> None:
    mask = np.zeros((4000, 4100), dtype=bool)
    mask[1000:3000, 1000:3000] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    n_bytes = (tmp_path / "mask.png").stat().st_size
    assert mask.size > 16_000_000 and n_bytes * 256 < mask.size, (
        "more pixels than a photograph of so few bytes has"
    )
    assert np.array_equal(read_mask(tmp_path / "mask.png", (4000, 4100)), mask)


def test_masks_of_another_data_set_in_the_same_folder_are_not_taken(
    masked_run: Path, images: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    assert masks_of_run(masked_run, Progress(say=lines.append)) is not None and not lines
    shutil.rmtree(tmp_path / "data")
    other = imported(images, tmp_path / "other").dataset
    imported(
        images, tmp_path / "data", mask_images(other, tmp_path / "others", other.manifest["image_id"].tolist())
    )
    assert masks_of_dataset(tmp_path / "data") is not None
    assert masks_of_run(masked_run, Progress(say=lines.append)) is None
    assert len(lines) == 1 and "its manifest.csv is not the one" in lines[0]


def test_counterfactuals_and_explain_take_the_masks_of_the_data_set_unasked(
    masked_run: Path, binary: Path, tmp_path: Path
) -> None:
    out = dk.counterfactuals(masked_run, out=tmp_path / "changed", artefacts=["ink"], device="cpu").out
    masks = json.loads((out / "counterfactuals.json").read_text())["lesion_known_by"]
    assert masks["mask"] > 10 and masks["automatic"] == masks["ellipse"] == 0
    dataset = dk.load_dataset(binary)
    inside = dataset.image_path(dataset.manifest["image_id"].iloc[0])
    outside = shutil.copy(inside, tmp_path / inside.name)
    for image, has_mask in ((inside, True), (outside, False)):
        found = dk.explain(
            masked_run / "model", [str(image)], out=tmp_path / "maps", checks=False, device="cpu"
        ).out
        table = pd.read_csv(found / "explanations.csv")
        assert table["mask_area"].notna().all() == has_mask, "a copy elsewhere is no image of the data set"


def test_the_command_says_how_many_masks_are_used(images: Path, tmp_path: Path, invoke: Invoke) -> None:
    dataset = imported(images, tmp_path / "first").dataset
    ids = dataset.manifest["image_id"].tolist()
    masks = mask_images(dataset, tmp_path / "masks", ids[:2])
    save_mask(masks / f"{ids[2]}.png", (9, 9))
    code, out, messages = invoke("import", "ham10000", images, "--out", tmp_path / "data", "--masks", masks)
    assert code == 0, messages
    assert f"lesion masks: 2 used, 1 refused: {tmp_path / 'data' / MASKS_TABLE}" in out


@pytest.mark.parametrize("link", ["the image", "the folder", "a way round"])
def test_masks_are_taken_for_images_behind_links(tmp_path: Path, link: str) -> None:
    store, images = tmp_path / "store", tmp_path / "images"
    store.mkdir()
    Image.new("RGB", (40, 40)).save(store / "blob.png")
    (images / "nevus").mkdir(parents=True)
    (images / "nevus" / "a.png").symlink_to(store / "blob.png")
    (tmp_path / "linked").symlink_to(images)
    top = {"the image": images, "the folder": tmp_path / "linked", "a way round": images / ".." / "images"}[link]
    path = top / "nevus" / "a.png"
    save_mask(tmp_path / "masks" / "a.png", (40, 40))
    masks = ImageMasks(LesionMasks(tmp_path / "masks", {"nevus/a": "a.png"}), images)
    assert masks.mask(ImageRef(name="a.png", image_id="a", path=str(path)), (40, 40)) is not None
    outside = ImageRef(name="a.png", image_id="a", path=str(store / "blob.png"))
    assert masks.mask(outside, (40, 40)) is None
