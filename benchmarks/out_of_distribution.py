"""Are foreign images told from lesions? Detection rates by kind of image, and false alarms on test images.

    python benchmarks/out_of_distribution.py images IMAGES --photographs FOLDER
    python benchmarks/out_of_distribution.py run DATASETS WEIGHTS IMAGES --out RUNS
    python benchmarks/out_of_distribution.py table

`images` makes folders of foreign images below IMAGES: photographs (sample images of scikit-learn and Matplotlib, and
those of scikit-image, whose folder `skimage/data` --photographs names; each whole and in quarters), other medical
images and faces of scikit-image, and text pages, noise and plain colours that it draws. `run` trains a frozen
MobileNetV2 on DATASETS/isic9, predicts these folders and images of DATASETS/ham10000 that isic9 does not hold, and adds
a row for each kind. Quarters of one photograph are no independent images: intervals take a photograph as the unit.
"""

import argparse
import datetime
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from scale import add_rows, commit, machine, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "out_of_distribution.csv"
HEADER = (
    "date",
    "commit",
    "machine",
    "model",
    "kind",
    "n",
    "n_units",
    "n_outside",
    "rate",
    "low",
    "high",
    "method",
)
PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "clock_motion", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "moon", "motorcycle_left", "motorcycle_right", "rocket",
)  # fmt: skip
MEDICAL = ("ihc", "retina", "microaneurysms", "cell")
WORDS = ("the", "lesion", "was", "seen", "on", "a", "page", "figure", "and", "table", "with", "values", "interval")
TRAINING = (
    "--set", "phases.0.views=0", "--set", "augment=none", "--set", "test_views=identity", "--device", "cpu", "--resume",
)  # fmt: skip
N_DRAWN, N_OTHER = 40, 200


def make_images(out: Path, skimage_data: Path) -> None:
    """Make the folders of foreign images."""
    import matplotlib
    import sklearn

    samples = Path(sklearn.__file__).parent / "datasets" / "images"
    hopper = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    stems = {path.stem: path for path in skimage_data.iterdir()}
    _write_quarters(
        out / "photographs", [*(stems[name] for name in PHOTOGRAPHS), *sorted(samples.glob("*.jpg")), hopper]
    )
    _write_quarters(out / "other medical images", [stems[name] for name in MEDICAL])
    faces = np.load(stems["lfw_subset"], allow_pickle=False)[:100]
    for number, face in enumerate(faces):
        image = Image.fromarray((face * 255).astype(np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
        _save(image, out / "faces" / f"{number}.png")
    rng = np.random.default_rng(0)
    for number in range(N_DRAWN):
        _save(_text_page(rng), out / "text pages" / f"{number}.png")
        _save(_noise(rng, number % 4), out / "noise" / f"{number}.png")
        _save(_plain(rng), out / "plain colours" / f"{number}.png")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(path)


def _write_quarters(folder: Path, files: Iterable[Path]) -> None:
    """Write each file whole and in quarters, with the file's name before a hyphen."""
    for file in files:
        image = Image.open(file).convert("RGB")
        width, height = image.size
        _save(image, folder / f"{file.stem}-whole.png")
        for number, (x, y) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
            box = (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2)
            _save(image.crop(box), folder / f"{file.stem}-{number}.png")


def _text_page(rng: np.random.Generator) -> Image.Image:
    size = int(rng.integers(10, 30))
    image = Image.new("RGB", (450, 600), tuple(int(level) for level in rng.integers(225, 256, 3)))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for y in range(20, 570, int(size * 1.4)):
        draw.text(
            (20, y), " ".join(rng.choice(WORDS, int(rng.integers(2, 400 // size)))), font=font, fill=(30, 30, 30)
        )
    return image


def _noise(rng: np.random.Generator, kind: int) -> Image.Image:
    """Return noise: of colours, grey, smooth colours, or colours around that of skin."""
    uniform = rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)
    if kind == 0:
        return Image.fromarray(uniform)
    if kind == 1:
        return Image.fromarray(np.clip(rng.normal(128, 40, (256, 256)), 0, 255).astype(np.uint8))
    if kind == 2:
        smooth = np.asarray(Image.fromarray(uniform).filter(ImageFilter.GaussianBlur(6)), dtype=np.float64)
        scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        return Image.fromarray((255 * scaled).astype(np.uint8))
    skin = np.array([200, 150, 130]) + rng.normal(0, 40, (256, 256, 3))
    return Image.fromarray(np.clip(skin, 0, 255).astype(np.uint8))


def _plain(rng: np.random.Generator) -> Image.Image:
    """Return one colour, darker to one side."""
    colour = rng.integers(0, 256, 3)
    shade = np.linspace(1, float(rng.uniform(0.5, 1)), 256)[None, :, None]
    return Image.fromarray((np.ones((256, 256, 3)) * colour * shade).astype(np.uint8))


def run(datasets: Path, weights: Path, images: Path, out: Path) -> None:
    """Train where need be, and add a row for each kind of image that has none."""
    finished = _train(datasets / "isic9", weights, out)
    if "isic9, test" not in {row["kind"] for row in read_rows(ROWS)}:
        table = pd.read_csv(finished / "out_of_distribution.csv")
        _add_row("isic9, test", table[table["split"] == "test"], table["group"])
    measure(finished / "model", datasets, images, out)


def measure(model: Path, datasets: Path, images: Path, out: Path) -> None:
    """Predict each kind of foreign image that has no row yet, and add its row."""
    import dermkit as dk

    done = {row["kind"] for row in read_rows(ROWS)}
    other = _other_images(datasets)
    kinds = {folder.name: [str(folder)] for folder in sorted(images.iterdir())}
    for kind, paths in {**kinds, "ham10000, not in isic9": other}.items():
        if kind in done:
            continue
        dk.predict(model, paths, out=out / f"predicted-{kind.split(',')[0]}")
        table = pd.read_csv(out / f"predicted-{kind.split(',')[0]}" / "out_of_distribution.csv")
        is_quartered = kind in ("photographs", "other medical images")
        unit = table["image_id"].astype(str)
        _add_row(kind, table, unit.str.rpartition("-")[0] if is_quartered else unit)


def _train(dataset: Path, weights: Path, out: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "dermkit.cli", "train", "strong-5min", str(dataset), "--weights", str(weights), "--out",
         str(out), *TRAINING],
        check=True,
    )  # fmt: skip
    (found,) = out.glob("strong-5min*/*/report.html")
    return found.parent


def _other_images(datasets: Path) -> list[str]:
    """Return images of ham10000 whose ISIC id and pixels isic9 does not hold, the same ones every time."""
    from dermkit.data.manifest import load_dataset

    known, other = load_dataset(datasets / "isic9").manifest, load_dataset(datasets / "ham10000")
    rows = other.manifest
    is_known = rows["isic_id"].isin(set(known["isic_id"])) | rows["pixel_sha256"].isin(set(known["pixel_sha256"]))
    sample = rows[~is_known].drop_duplicates("lesion_id").sample(N_OTHER, random_state=0)
    return [str(other.image_root / path) for path in sample["path"]]


def _add_row(kind: str, table: pd.DataFrame, units: "pd.Series[Any]") -> None:
    from dermkit.metrics.stats.intervals import proportion_estimate

    groups = pd.factorize(units.loc[table.index])[0].astype(np.int64)
    is_marked = (table["p_value"] <= 0.05 + 1e-12).to_numpy()
    rate = proportion_estimate(is_marked, groups)
    low, high = rate.ci95 or ("", "")
    row = (
        datetime.date.today().isoformat(), commit(), machine(), "isic9, frozen MobileNetV2", kind, len(table),
        len(set(groups.tolist())), int(is_marked.sum()), rate.value, low, high, rate.method,
    )  # fmt: skip
    add_rows(ROWS, HEADER, [row])


def print_table() -> None:
    """Print the rows as a table of doubts.md."""
    print("| images | n | marked | rate | 95 % interval |\n|---|---|---|---|---|")
    for row in read_rows(ROWS):
        n = row["n"] if row["n"] == row["n_units"] else f"{row['n']} of {row['n_units']}"
        interval = f"{100 * float(row['low']):.1f} to {100 * float(row['high']):.1f} %" if row["low"] else ""
        print(f"| {row['kind']} | {n} | {row['n_outside']} | {100 * float(row['rate']):.1f} % | {interval} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("images")
    made.add_argument("images", type=Path)
    made.add_argument("--photographs", type=Path, required=True)
    running = commands.add_parser("run")
    for name in ("datasets", "weights", "images"):
        running.add_argument(name, type=Path)
    running.add_argument("--out", type=Path, required=True)
    commands.add_parser("table")
    chosen = parser.parse_args()
    if chosen.command == "images":
        make_images(chosen.images, chosen.photographs)
    elif chosen.command == "run":
        run(chosen.datasets, chosen.weights, chosen.images, chosen.out)
    else:
        print_table()
