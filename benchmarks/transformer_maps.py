"""Which map of a transformer lies on the patch that decides? Small ViTs on made images; rows in transformer_maps.csv.

    python benchmarks/transformer_maps.py run [--pooling token avg] [--depths 2 4 6] [--seeds 2 3 4]
    python benchmarks/transformer_maps.py table

Images are noise of 4 x 4 patches, of which one has a colour that is the class. A net learns it (150 steps of 32 images,
its accuracy is in the rows), and is then explained on 30 new images that hold a patch of another class too: of a map of
the true class, the share that lies on its patch (an even map has 1/16), and how often its largest patch is that one.
"""

import argparse
import datetime
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from scipy.stats import t
from torch import Tensor, nn

from dermkit.explanation.heat_maps import NetExplainer
from dermkit.explanation.target import EvidenceTarget, MapMethod
from dermkit.images.preprocess import Preprocessing
from dermkit.models.net import Net
from dermkit.models.weights import import_timm
from scale import add_rows, commit, machine, read_rows, versions

ROWS = Path(__file__).parent / "transformer_maps.csv"
HEADER = (
    "date", "commit", "machine", "versions", "pooling", "depth", "seed", "accuracy", "n", "method", "share", "hits",
)  # fmt: skip
SIZE, PATCH, WIDTH, N = 32, 8, 32, 30
SIDE = SIZE // PATCH
METHODS = tuple(method for method in get_args(MapMethod) if method != "auto")
PREPROCESSING = Preprocessing(
    size=SIZE, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.5,) * 3, std=(0.25,) * 3
)


def draw(n: int, rng: np.random.Generator, *, n_patches: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels (n, 32, 32, 3) uint8, the class of each image, and which of 16 patches decides."""
    values = rng.normal(128, 22, (n, SIZE, SIZE, 3))
    labels = rng.integers(0, 3, n)
    places = np.stack([rng.permutation(SIDE**2)[:2] for _ in range(n)])
    colours = np.stack([labels, (labels + rng.integers(1, 3, n)) % 3], axis=1)
    for image in range(n):
        for place, colour in zip(places[image, :n_patches], colours[image], strict=False):
            row, column = PATCH * (place // SIDE), PATCH * (place % SIDE)
            values[image, row : row + PATCH, column : column + PATCH] += 64 * np.where(
                np.arange(3) == colour, 1, -0.5
            )
    return values.clip(0, 255).astype(np.uint8), labels, places[:, 0]


def as_input(pixels: np.ndarray) -> Tensor:
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def train(pooling: str, depth: int, seed: int) -> tuple[Net, float]:
    """Return a net and its accuracy over the last 20 batches, which it had not seen before."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vit = import_timm().models.vision_transformer.VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=depth, num_heads=2, num_classes=0, global_pool=pooling,
        class_token=pooling == "token",
    )  # fmt: skip
    net = Net(vit, nn.Sequential(nn.Linear(WIDTH, 3)), WIDTH).train()
    optimizer, accuracies = torch.optim.AdamW(net.parameters(), 3e-3), []
    for _ in range(150):
        pixels, labels, _ = draw(32, rng, n_patches=1)
        logits, target = net(as_input(pixels)), torch.from_numpy(labels)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        accuracies.append(float((logits.argmax(1) == target).float().mean()))
    return net.eval().requires_grad_(False), float(np.mean(accuracies[-20:]))


def measure(net: Net, method: MapMethod) -> tuple[float, int]:
    """Return the mean share of a map on the patch that decides, and in how many images its largest patch is that."""
    explainer = NetExplainer(net, PREPROCESSING, method=method, batch_size=64)
    shares, hits = [], 0
    for pixels, label, place in zip(*draw(N, np.random.default_rng(99), n_patches=2), strict=True):
        heat_map = explainer(pixels, EvidenceTarget(int(label)))
        patches = heat_map.reshape(SIDE, PATCH, SIDE, PATCH).mean(axis=(1, 3)).ravel()
        shares.append(patches[place] / patches.sum() if patches.any() else 0.0)
        hits += int(patches.argmax() == place)
    return float(np.mean(shares)), hits


def run(poolings: list[str], depths: list[int], seeds: list[int]) -> None:
    for pooling in poolings:
        for depth in depths:
            for seed in seeds:
                net, accuracy = train(pooling, depth, seed)
                start = (datetime.date.today().isoformat(), commit(), machine(), versions(), pooling, depth, seed)
                rows = [(*start, f"{accuracy:.3f}", N, method, *measure(net, method)) for method in METHODS]
                add_rows(ROWS, HEADER, rows)


def table() -> str:
    """Return means over nets as Markdown, with t-intervals of the difference to maps by gradients at a layer."""
    frame = pd.DataFrame(read_rows(ROWS)).astype({"share": float, "hits": int, "n": int})
    frame["hits"] /= frame["n"]
    lines = [
        "| pooling | method | nets | share on the patch | largest patch | share less that of `gradient` |",
        "|---|---|---|---|---|---|",
    ]
    for pooling, of_pooling in frame.groupby("pooling", sort=False):
        shares = of_pooling.pivot(index=["depth", "seed"], columns="method", values="share")
        for method in METHODS:
            difference = shares[method] - shares["gradient"]
            half = t.ppf(0.975, len(shares) - 1) * difference.std(ddof=1) / len(shares) ** 0.5
            hits = of_pooling.loc[of_pooling["method"] == method, "hits"].mean()
            text = "" if method == "gradient" else f"{difference.mean():+.2f} ± {half:.2f}"
            lines.append(
                f"| {pooling} | `{method}` | {len(shares)} | {shares[method].mean():.2f} | {hits:.2f} | {text} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--pooling", nargs="+", default=["token", "avg"])
    parser.add_argument("--depths", nargs="+", type=int, default=[2, 4, 6])
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3, 4])
    options = parser.parse_args()
    if options.what == "run":
        run(options.pooling, options.depths, options.seeds)
    else:
        print(table())


if __name__ == "__main__":
    main()
