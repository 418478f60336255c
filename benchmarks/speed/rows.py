"""The rows of benchmarks/speed.csv: which are there, how one is added, and what a job's rows say together."""

import csv
import datetime
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODE = HERE.parents[1] / "src"
HEADER = (
    "date", "commit", "machine", "load", "job", "who", "setting", "net", "size", "n", "epochs", "repeat", "seconds",
    "inner_seconds", "images_per_second", "steady_images_per_second", "cpu_seconds", "peak_rss_mb", "tree_mb",
    "precision", "train_loss", "val_loss", "val_accuracy", "test_accuracy", "weights", "images", "versions", "command",
)  # fmt: skip
RATES = ("finetune",)
"""Jobs whose figure is training images per second over an epoch; all others compare seconds."""

Row = Mapping[str, str]


def read(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def append(file: Path, row: Mapping[str, object]) -> None:
    """Add one row; a figure that the row lacks is empty."""
    fresh = not file.exists()
    filled = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
    }
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, HEADER, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow({**filled, **{name: _short(value) for name, value in row.items()}})


def _short(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value


@cache
def commit() -> str:
    """Return the commit as this process found it, marked where the code that is measured or measures has changed.

    The rows themselves are no such change: a run that went on after them would otherwise measure all anew.
    """
    name = _git("rev-parse", "--short", "HEAD")
    return f"{name}-dirty" if _git("status", "--porcelain", "--", str(CODE), str(HERE)) else name


def _git(*words: str) -> str:
    shown = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
    return shown.stdout.strip() or ("unknown" if words[0] == "rev-parse" else "")


def machine() -> str:
    """Return processor, cores and threads that this process may use, and memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    low = "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "no bf16"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return (
        f"{names[0] if names else platform.machine()} ({low}), {usable} cores, threads {threads}, {memory:.0f} GiB"
    )


# What the rows say ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One contender of a group. value: its median; times: how many times slower than the reference, per repeat."""

    who: str
    setting: str
    values: tuple[float, ...]
    times: tuple[float, ...]
    row: Row


def figure(row: Row) -> float:
    """Return what a job compares: images per second, or seconds; of the bare model its inner seconds."""
    if row["job"] in RATES:
        return float(row["images_per_second"])
    return float(row["inner_seconds"] if row["who"].startswith("bare") else row["seconds"])


def compared(rows: Sequence[Row], reference: tuple[str, str]) -> list[Compared]:
    """Set the rows of one group against the reference, repeat by repeat: those ran next to each other in time."""
    own = {row["repeat"]: figure(row) for row in rows if (row["who"], row["setting"]) == reference}
    found = []
    for who, setting in dict.fromkeys((row["who"], row["setting"]) for row in rows):
        chosen = [row for row in rows if (row["who"], row["setting"]) == (who, setting)]
        rate = chosen[0]["job"] in RATES
        pairs = [(own[row["repeat"]], figure(row)) for row in chosen if row["repeat"] in own]
        times = tuple(ours / theirs if rate else theirs / ours for ours, theirs in pairs)
        found.append(Compared(who, setting, tuple(figure(row) for row in chosen), times, chosen[-1]))
    return found


def table(rows: Sequence[Row], job: str, *, against: str = "") -> str:
    """Return the groups of a job as Markdown: medians and ratios with their spread, of the latest commit."""
    latest = [row for row in rows if row["job"] == job]
    latest = [row for row in latest if row["commit"] == latest[-1]["commit"]]
    lines: list[str] = []
    for key in dict.fromkeys((row["net"], row["size"], row["n"], row["weights"]) for row in latest):
        group = [row for row in latest if (row["net"], row["size"], row["n"], row["weights"]) == key]
        ours = [row["setting"] for row in group if row["who"] == "ours"] or [""]
        reference = ("ours", against if against in ours else ours[0])
        unit = "images/s" if job in RATES else "seconds"
        net, size, n, weights = key
        lines += [
            f"\n{job}: {net}, {size} px, n {n}, weights {weights or 'random (time only)'}, "
            f"commit {group[0]['commit']}; reference: ours, {reference[1]}\n",
            f"| who | setting | {unit}, median | least to most | ours is x times as fast | least to most | "
            "after the first batch | MB | runs |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(item) for item in compared(group, reference)]
    return "\n".join(lines)


def _line(item: Compared) -> str:
    cells = [item.who, item.setting, f"{statistics.median(item.values):.1f}", _spread(item.values, ".1f")]
    cells += [f"{statistics.median(item.times):.2f}", _spread(item.times, ".2f")] if item.times else ["", ""]
    cells.append(item.row["steady_images_per_second"] if item.row["job"] in RATES else "")
    cells += [f"{float(item.row['peak_rss_mb']):.0f}", str(len(item.values))]
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def losses(rows: Sequence[Row], job: str) -> str:
    """Return the last epoch's losses: mean over the seeds, their deviation, and how far the mean is from ours."""
    latest = [row for row in rows if row["job"] == job and row["val_loss"]]
    latest = [row for row in latest if row["commit"] == latest[-1]["commit"]]
    lines = [
        "| who | setting | seeds | training loss | from ours | validation loss | from ours |",
        "|" + "---|" * 7,
    ]
    for who, setting in dict.fromkeys((row["who"], row["setting"]) for row in latest):
        chosen = [row for row in latest if (row["who"], row["setting"]) == (who, setting)]
        cells = [who, setting, str(len(chosen))]
        for name in ("train_loss", "val_loss"):
            ours = [float(row[name]) for row in latest if row["who"] == "ours"]
            own = [float(row[name]) for row in chosen]
            apart = f"{statistics.mean(own) - statistics.mean(ours):+.4f}" if ours else ""
            cells += [f"{statistics.mean(own):.4f} (sd {statistics.pstdev(own):.4f})", apart]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def exponents(rows: Sequence[Row]) -> str:
    """Return, per stage of the scaling job, time at each n, the exponent between neighbours, and the fitted one."""
    latest = [row for row in rows if row["job"] == "scale" and row["who"] == "ours"]
    latest = [row for row in latest if row["commit"] == latest[-1]["commit"]]
    lines = [
        "| stage | n: seconds (exponent from the n before) | fitted exponent | largest MB |",
        "|---|---|---|---|",
    ]
    for stage in dict.fromkeys(row["setting"] for row in latest):
        chosen = [row for row in latest if row["setting"] == stage]
        sizes = sorted({int(row["n"]) for row in chosen})
        seconds = [statistics.median(float(row["seconds"]) for row in chosen if int(row["n"]) == n) for n in sizes]
        cells = [f"{n:,}: {value:.1f}" for n, value in zip(sizes, seconds, strict=True)]
        for place in range(1, len(sizes)):
            cells[place] += f" ({fitted(sizes[place - 1 : place + 1], seconds[place - 1 : place + 1]):.2f})"
        slope = f"{fitted(sizes, seconds):.2f}" if len(sizes) > 1 else ""
        memory = max(float(row["peak_rss_mb"]) for row in chosen)
        lines.append(f"| {stage} | {'; '.join(cells)} | {slope} | {memory:.0f} |")
    return "\n".join(lines)


def fitted(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return b of seconds ~ n^b, least squares on logarithms."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(value) for value in seconds]).slope
