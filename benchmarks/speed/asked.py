"""What every measured script is asked, and its answer: one line `SPEED {...}` on standard output.

Standard library alone: ours and each peer's environment import it (`run.py` puts this folder on PYTHONPATH).
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

MARK = "SPEED "
PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Asked:
    """One measurement. setting: `defaults`, or switches joined by `+`; count: images, 0 = all that are there."""

    job: str
    setting: str
    images: Path
    net: str
    size: int
    epochs: int
    batch: int
    out: Path
    weights: Path | None
    sides: Path | None
    recipe: Path | None
    normalise: str
    seed: int
    count: int

    @property
    def switches(self) -> frozenset[str]:
        return frozenset() if self.setting == "defaults" else frozenset(self.setting.split("+"))

    def only(self, *known: str) -> frozenset[str]:
        """Return the switches; ends where one is not known, since it would be measured under a wrong name."""
        wrong = self.switches - set(known)
        if wrong:
            raise SystemExit(
                f"{self.job}: no such setting here: {', '.join(sorted(wrong))}; known: {', '.join(known)}"
            )
        return self.switches


def asked() -> Asked:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("--setting", default="defaults")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--net", choices=("resnet50", "mobilenetv2", "cnn"), default="resnet50")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--sides", type=Path, help="CSV of path, label, side: the split that ours made")
    parser.add_argument("--recipe", type=Path, help="a recipe.json of dermkit (ours alone)")
    parser.add_argument("--normalise", choices=("zero_one", "half"), default="zero_one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    given = Asked(**vars(parser.parse_args()))
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def answer(**figures: object) -> None:
    """Print the figures on the line that `run.py` reads; those that are None are left out."""
    print(MARK + json.dumps({name: value for name, value in figures.items() if value is not None}), flush=True)


def side_folder(root: Path, side: str) -> Path | None:
    """Return the folder `train`, `test` or `val` of a set in whatever case, or None."""
    found = [item for item in root.iterdir() if item.is_dir() and item.name.lower() == side]
    return found[0] if found else None


def pictures(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted."""
    return sorted(item for item in folder.rglob("*") if item.suffix.lower() in PICTURES)


@dataclass
class Clock:
    """Training images per second, epoch by epoch, as the loop lives through them."""

    _start: float = 0.0
    _first: tuple[float, int] | None = None
    _last: float = 0.0
    _seen: int = 0
    whole: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)

    def epoch(self) -> None:
        self._start, self._first, self._seen = time.perf_counter(), None, 0

    def batch(self, n: int) -> None:
        self._last = time.perf_counter()
        self._seen += n
        self._first = self._first or (self._last, n)

    def end(self) -> None:
        """Close an epoch. whole: from before the first batch to after the last; steady: without the first."""
        if self._first is None:
            return
        self.whole.append(self._seen / (self._last - self._start))
        first, n = self._first
        if self._seen > n:
            self.steady.append((self._seen - n) / (self._last - first))

    def figures(self) -> dict[str, object]:
        """Return the medians over the epochs, without the first where there are several: it compiles and warms up."""
        whole, steady = self.whole[1:] or self.whole, self.steady[1:] or self.steady
        return {
            "images_per_second": statistics.median(whole),
            "steady_images_per_second": statistics.median(steady) if steady else None,
            "epochs_images_per_second": [round(value, 2) for value in self.whole],
        }
