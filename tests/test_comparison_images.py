"""The images that `dermkit compare` shows are those that were scored."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import ATTRIBUTES_FILE, LOCATION, PREDICTIONS_FILE


@pytest.fixture
def divided_runs(trained: Path, tmp_path: Path) -> list[Path]:
    """Return two runs on images of their own copy; the second has two of the first's right test answers wrong."""
    images = RunFolder(trained).images_root()
    assert images is not None
    copy = shutil.copytree(images, tmp_path / "images")
    runs = [Path(shutil.copytree(trained, tmp_path / name)) for name in ("first", "second")]
    for run in runs:
        LOCATION.write(run, {"images": str(copy)})
    path = runs[1] / PREDICTIONS_FILE
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    names = [str(name) for name in rows if str(name).startswith("p_")]
    turned = rows.index[(rows["split"] == "test") & (rows["label"] == rows["predicted"])][:2]
    rows.loc[turned, names] = rows.loc[turned, names[::-1]].to_numpy()
    others = {
        name.removeprefix("p_"): other.removeprefix("p_") for name, other in zip(names, names[::-1], strict=True)
    }
    rows.loc[turned, "predicted"] = rows.loc[turned, "predicted"].map(others)
    rows.to_csv(path, index=False)
    dk.evaluate(runs[1])
    return runs


def n_shown(runs: list[Path], out: Path) -> tuple[int, int]:
    """Return how many images the page shows, and how many it says are not at hand."""
    page = dk.compare(runs, out=out).page.read_text()
    return page.count('src="data:image/jpeg'), page.count("image not at hand")


def test_an_image_that_was_replaced_since_it_was_scored_is_not_shown(
    divided_runs: list[Path], tmp_path: Path
) -> None:
    assert n_shown(divided_runs, tmp_path / "out") == (2, 0)
    listed = pd.read_csv(tmp_path / "out" / "disagreements_test.csv", dtype=str)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / listed["path"][0])
    assert n_shown(divided_runs, tmp_path / "out") == (1, 1)


def test_an_image_of_which_two_runs_scored_other_pixels_is_not_shown(
    divided_runs: list[Path], tmp_path: Path
) -> None:
    """One answer is about another picture than the file holds, whichever run is named first."""
    dk.compare(divided_runs, out=tmp_path / "out")
    image_id = pd.read_csv(tmp_path / "out" / "disagreements_test.csv", dtype=str)["image_id"][0]
    path = divided_runs[1] / ATTRIBUTES_FILE
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[table["image_id"] == image_id, "pixel_sha256"] = "0" * 64
    table.to_csv(path, index=False)
    assert n_shown(divided_runs, tmp_path / "out") == (1, 1)
    assert n_shown(divided_runs[::-1], tmp_path / "out2") == (1, 1)
