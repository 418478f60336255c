"""What is measured: every contender of every job, as commands."""

import csv
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asked import pictures, side_folder
from prepared import (
    DERMKIT,
    Options,
    flat_subset,
    log_of,
    model_for,
    quietly,
    size_of,
    subset,
    table_of,
    write_recipe,
)
from setup import HERE, PEERS, is_ready, python_of

FOUND = {"PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH", ""))))}
"""With this every measured script finds `asked`."""

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What dermkit's command line sets for itself; scripts of ours that go through its functions need it from outside."""

SETTINGS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "s2": {
        "ours": ("cold cache", "warm cache", "cold cache, fastest", "warm cache, fastest"),
        "bare": ("defaults", "bf16"),
        "keras": ("defaults", "cache", "bf16+cache", "features"),
        "fastai": ("defaults", "channels-last"),
    },
    "agree": {"ours": ("float32",), "keras": ("features+same",), "fastai": ("same",)},
    "finetune": {
        "ours": ("float32", "bfloat16", "fastest"),
        "bare, torch of the peers": ("defaults", "bf16"),
        "timm": ("defaults", "channels-last", "bf16+channels-last", "bf16+channels-last+workers2"),
        "fastai": ("defaults", "channels-last"),
        "keras": ("defaults", "cache", "bf16+cache"),
        "ultralytics": ("defaults", "cache"),
    },
    "score": {
        "ours": ("no cache", "cold cache", "warm cache"),
        "bare": ("defaults", "bf16"),
        "timm": ("defaults", "channels-last", "bf16+channels-last"),
        "keras": ("defaults", "batch128", "bf16+batch128"),
        "fastai": ("defaults", "channels-last"),
        "ultralytics": ("defaults", "batch32", "batch32+channels-last"),
    },
}
"""Who is measured at which settings; `--setting` chooses, and with `--only` names any that a script knows."""


@dataclass(frozen=True)
class Contender:
    """One line of a job. steps: measured, in order; before: not measured; after: figures read from files."""

    who: str
    setting: str
    net: str
    size: int
    n: int
    epochs: int
    weights: str
    steps: Sequence[Sequence[str]]
    out: Path
    before: Callable[[], None] = lambda: None
    after: Callable[[], Mapping[str, Any]] = dict
    env: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False
    """`out` is left as it is before the measurement: what an earlier run cached there is what is measured."""


def contenders(options: Options, repeat: int) -> list[Contender]:
    """Return the lines of a job in the order in which they take turns, net after net."""
    made = {"s2": _s2, "agree": _agree, "finetune": _finetune, "score": _score}[options.job]
    return [item for net in options.nets for item in made(options, net, repeat)]


def settings_of(options: Options, who: str) -> Sequence[str]:
    """Return the settings of a contender: the job's own, or those of the command line that it has."""
    own = SETTINGS[options.job].get(who, ())
    if not options.settings:
        return own
    listed = {name for names in SETTINGS[options.job].values() for name in names}
    asks = own and who in PEERS and who in options.only
    return [name for name in options.settings if name in own or (asks and name not in listed)]


def script(
    python: Path | str, file: str, options: Options, setting: str, net: str, out: Path, images: Path, *more: str
) -> list[str]:
    """Return the command line of one of the measured scripts."""
    return [
        str(python), str(HERE / file), options.job if options.job != "agree" else "s2", "--setting", setting,
        "--images", str(images), "--net", net, "--size", str(size_of(options, net)), "--epochs", str(options.epochs),
        "--batch", str(options.batch), "--out", str(out), *more,
    ]  # fmt: skip


def _weights(options: Options, net: str) -> list[str]:
    return ["--weights", str(options.weights)] if options.weights and net == "mobilenetv2" else []


def _line(options: Options, net: str, who: str, setting: str, n: int) -> Contender:
    words = f"{options.job}-{net}-{who}-{setting}".replace(" ", "-").replace(",", "")
    used = options.weights if options.job in ("s2", "agree") and net == "mobilenetv2" else None
    return Contender(
        who, setting, net, size_of(options, net), n, options.epochs, used.name if used else "",
        (), options.work / "out" / words,
    )  # fmt: skip


def _peers(
    options: Options, net: str, names: Iterable[str], images: Path, n: int, *more: str
) -> Iterable[Contender]:
    for name in names:
        if not is_ready(options.envs, name):
            print(f"{name}: has no environment (setup.py makes it); left out")
            continue
        for setting in settings_of(options, name):
            line = _line(options, net, name, setting, n)
            python, file = python_of(options.envs, name), f"peers/{name}/peer.py"
            command = script(python, file, options, setting, net, line.out, images, *more)
            yield replace(line, steps=(command,))


def _bare(
    options: Options, net: str, n: int, who: str = "bare", python: Path | str = sys.executable
) -> Iterable[Contender]:
    for setting in settings_of(options, who):
        line = _line(options, net, who, setting, n)
        command = script(python, "bare.py", options, setting, net, line.out, options.images, "--count", str(n))
        yield replace(line, steps=(command,), env=PASSIVE if who == "bare" else {})


# The jobs ---------------------------------------------------------------------------------------------------------


def _s2(options: Options, net: str, repeat: int) -> Iterable[Contender]:
    root = subset(options)
    n = len(pictures(side_folder(root, "train") or root))
    recipe = {"cold cache": "float32", "warm cache": "float32"}
    for setting in settings_of(options, "ours"):
        line = _line(options, net, "ours", setting, n)
        line = replace(line, out=line.out.with_name(line.out.name.replace("cold", "").replace("warm", "")))
        file = write_recipe(options, net, recipe.get(setting, "fastest"))
        bring = (*DERMKIT, "import", "folder", str(root), "--out", str(line.out / "data"))
        fit = (
            *DERMKIT,
            "train",
            str(file),
            str(line.out / "data"),
            "--out",
            str(line.out / "runs"),
            *_weights(options, net),
        )
        if setting.startswith("cold"):
            yield replace(line, steps=(bring, fit), after=log_of(line.out / "runs"))
        else:
            ready = _warm(line.out, bring, fit)
            yield replace(line, steps=(fit,), before=ready, after=log_of(line.out / "runs"), keep=True)
    yield from _bare(options, net, n)
    peers = ("keras", "fastai")
    weights = () if net == "resnet50" else tuple(_weights(options, net))
    yield from _peers(options, net, peers, root, n, "--seed", str(repeat), *weights)


def _warm(out: Path, bring: Sequence[str], fit: Sequence[str]) -> Callable[[], None]:
    """Return what leaves a data set with its caches and no run of it, made anew only where it is not there."""

    def ready() -> None:
        if not list((out / "data").glob("cache/*.npy")):
            shutil.rmtree(out, ignore_errors=True)
            quietly(bring, codes=(0, 7))
            quietly(fit)
        shutil.rmtree(out / "runs", ignore_errors=True)

    return ready


def _agree(options: Options, net: str, repeat: int) -> Iterable[Contender]:
    """The same images, split, pixels, normalisation and head: do the losses agree? The repeat is the seed."""
    root, size = subset(options), size_of(options, net)
    line = _line(options, net, "ours", "float32", len(pictures(side_folder(root, "train") or root)))
    shared = options.work / "agree" / f"{root.name}-{line.n}"
    data, sides = shared / "data", shared / "sides.csv"
    file = write_recipe(options, net, "float32", normalise="weights", size=size)
    fit = (
        *DERMKIT, "train", str(file), str(data), "--split", "shared", "--seed", str(repeat),
        "--out", str(line.out / "runs"), *_weights(options, net),
    )  # fmt: skip
    ready = _shared_split(root, data, sides)
    yield replace(line, steps=(fit,), before=ready, after=log_of(line.out / "runs"))
    more = ("--sides", str(sides), "--seed", str(repeat), "--normalise", "half", *_weights(options, net))
    yield from _peers(options, net, ("keras", "fastai"), root, line.n, *more)


def _shared_split(root: Path, data: Path, sides: Path) -> Callable[[], None]:
    def ready() -> None:
        if sides.exists():
            return
        shutil.rmtree(data, ignore_errors=True)
        quietly((*DERMKIT, "import", "folder", str(root), "--out", str(data)), codes=(0, 7))
        quietly((*DERMKIT, "split", str(data), "--scheme", "given", "--validation", "0.2", "--name", "shared"))
        rows = {row["image_id"]: row for row in table_of(data / "manifest.csv")}
        split = table_of(data / "splits" / "shared.csv")
        with sides.open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("path", "label", "side"))
            for row in split:
                image = rows[row["image_id"]]
                writer.writerow((str(root / image["path"]), image["label"], row["split"]))

    return ready


def _finetune(options: Options, net: str, repeat: int) -> Iterable[Contender]:
    root = subset(options)
    n = len(pictures(side_folder(root, "train") or root))
    data = options.work / f"finetune-data-{root.name}-{n}"

    def ready() -> None:
        if not (data / "manifest.csv").exists():
            quietly((*DERMKIT, "import", "folder", str(root), "--out", str(data)), codes=(0, 7))

    for setting in settings_of(options, "ours"):
        line = _line(options, net, "ours", setting, n)
        file = write_recipe(options, net, setting, whole=True)
        given = replace(options, weights=None)
        command = script(
            sys.executable, "ours_finetune.py", given, setting, net, line.out, data, "--recipe", str(file)
        )
        yield replace(line, steps=(command,), before=ready, env=PASSIVE)
    if is_ready(options.envs, "timm"):
        yield from _bare(options, net, n, "bare, torch of the peers", python_of(options.envs, "timm"))
    peers = ("timm", "fastai", "keras", "ultralytics")
    yield from _peers(options, net, peers, root, n, "--seed", str(repeat))


def _score(options: Options, net: str, repeat: int) -> Iterable[Contender]:
    folder = flat_subset(options)
    n = len(pictures(folder))
    model = options.work / f"model-{net}-{size_of(options, net)}"
    ready = model_for(options, net, model)
    for setting in settings_of(options, "ours"):
        line = _line(options, net, "ours", setting, n)
        kept = options.work / "out" / f"score-{net}-kept"
        command = (*DERMKIT, "predict", str(model), str(folder), "--out", str(line.out / "predictions"))
        fill = (*command, "--cache", str(kept))
        before = {
            "no cache": ready,
            "cold cache": _emptied(ready, kept),
            "warm cache": _filled(ready, fill, line.out, kept),
        }
        yield replace(line, steps=(command if setting == "no cache" else fill,), before=before[setting])
    yield from _bare(options, net, n)
    yield from _peers(options, net, ("timm", "keras", "fastai", "ultralytics"), folder, n, "--seed", str(repeat))


def _emptied(ready: Callable[[], None], kept: Path) -> Callable[[], None]:
    def before() -> None:
        ready()
        shutil.rmtree(kept, ignore_errors=True)

    return before


def _filled(ready: Callable[[], None], fill: Sequence[str], out: Path, kept: Path) -> Callable[[], None]:
    def before() -> None:
        ready()
        if not kept.is_dir() or not any(kept.iterdir()):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            quietly(fill, codes=(0, 7))

    return before
