"""Ours, the bare model and the peers in turn on the same images; rows go to benchmarks/speed.csv.

    python benchmarks/speed/setup.py
    python benchmarks/speed/run.py s2       --images ISIC9 [--weights FILE]
    python benchmarks/speed/run.py agree    --images ISIC9 --weights FILE --nets mobilenetv2
    python benchmarks/speed/run.py finetune --images ISIC9 --count 960
    python benchmarks/speed/run.py score    --images HAM10000
    python benchmarks/speed/run.py features --weights FILE
    python benchmarks/speed/run.py scale    --images ISIC9
    python benchmarks/speed/run.py memory   --images HAM10000
    python benchmarks/speed/run.py table JOB [--against SETTING]

Run it with the interpreter that dermkit is installed for. A row that is there (job, who, setting, net, size, n,
repeat, commit) is not measured again; Ctrl-C at will. What is measured, and what is not: README.md beside this.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobs
import rows
from asked import pictures
from jobs import Contender
from meter import Measured, measure
from prepared import DERMKIT, RECIPES, NotPrepared, Options, model_for, quietly, write_recipe
from setup import ENVS, HERE, PEERS, is_ready, python_of

ROWS = HERE.parent / "speed.csv"
COMPARED = ("s2", "agree", "finetune", "score")
STEPS = (1000, 3162, 10_000, 31_623, 100_000)
MEMORY = (10_000, 200_000)
EPOCHS = {"s2": 10, "agree": 10, "finetune": 3, "score": 1, "scale": 2, "memory": 1}
FIGURES = (
    "inner_seconds", "images_per_second", "steady_images_per_second", "precision", "train_loss", "val_loss",
    "val_accuracy", "test_accuracy", "versions",
)  # fmt: skip


def compare(options: Options, given: argparse.Namespace) -> int:
    """Measure what is missing, repeat by repeat, all contenders in turn; returns how many failed."""
    failed = 0
    for path in pictures(options.images):
        path.read_bytes()  # the first in turn must not be the one that waits for the disk
    for repeat in range(given.repeats):
        for line in jobs.contenders(options, repeat):
            wanted = chosen(line, given) and not is_there(given.rows, options.job, line, repeat)
            if wanted and not take(options, given, line, repeat):
                failed += 1
    print(tables(rows.read(given.rows), options.job, given.against))
    return failed


def tables(found: Sequence[rows.Row], job: str, against: str) -> str:
    """Return what the rows of a job say."""
    if not any(row["job"] == job for row in found):
        return f"{job or 'table JOB'}: no rows"
    if job == "scale":
        return rows.exponents(found)
    text = rows.table(found, job, against=against)
    return f"{text}\n\n{rows.losses(found, job)}" if job == "agree" else text


def chosen(line: Contender, given: argparse.Namespace) -> bool:
    """Tell whether the command line asked for this one: `--peer` leaves ours and bare in, `--only` does not."""
    peer = line.who in PEERS
    if given.peer and peer and line.who not in given.peer:
        return False
    return not given.only or line.who.split(",")[0] in given.only


def is_there(file: Path, job: str, line: Contender, repeat: int) -> bool:
    key = (
        job,
        line.who,
        line.setting,
        line.net,
        str(line.size),
        str(line.n),
        line.weights,
        str(repeat),
        rows.commit(),
    )
    names = ("job", "who", "setting", "net", "size", "n", "weights", "repeat", "commit")
    return any(tuple(row[name] for name in names) == key for row in rows.read(file))


def take(options: Options, given: argparse.Namespace, line: Contender, repeat: int) -> bool:
    """Measure one contender and add its rows; a failure is printed and the others go on."""
    try:
        line.before()
    except NotPrepared as error:
        print(f"{line.who}, {line.setting}, {line.net}: {error}", flush=True)
        return False
    if not line.keep:
        shutil.rmtree(line.out, ignore_errors=True)
    line.out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    env = {**jobs.FOUND, **line.env}
    log = options.work / "logs" / f"{line.out.name}-{line.setting.split(' ')[0]}-{repeat}.log"
    parts = []
    for number, command in enumerate(line.steps):
        part = measure(command, log.with_suffix(f".{number}.log"), env=env, limit=given.limit)
        parts.append(part)
        if part.code not in (0, 7):  # 7: done, but some images were refused and are listed
            shown = log.with_suffix(f".{number}.log").read_text(errors="replace")[-1500:]
            print(f"{line.who}, {line.setting}, {line.net}: exit code {part.code}\n{shown}", flush=True)
            return False
    record(options, given, line, repeat, parts, load)
    return True


def record(
    options: Options,
    given: argparse.Namespace,
    line: Contender,
    repeat: int,
    parts: Sequence[Measured],
    load: float,
) -> None:
    found: dict[str, Any] = {**parts[-1].answer, **line.after()}
    row = {
        "job": options.job, "who": line.who, "setting": line.setting, "net": line.net, "size": line.size, "n": line.n,
        "epochs": line.epochs, "repeat": repeat, "weights": line.weights, "load": load, "images": options.images.name,
        "seconds": sum(part.seconds for part in parts), "cpu_seconds": sum(part.cpu_seconds for part in parts),
        "peak_rss_mb": max(part.peak_rss_mb for part in parts), "tree_mb": max(part.tree_mb for part in parts),
        "command": " && ".join(shown(command, options, given.envs) for command in line.steps),
        **{name: found.get(name, "") for name in FIGURES},
    }  # fmt: skip
    if row["job"] == "score" and line.who == "ours":
        row["images_per_second"] = line.n / float(row["seconds"])
    rows.append(given.rows, row)
    tell(row)
    if "bare_images_per_second" in found:
        bare = float(found["bare_images_per_second"])
        own = {"who": "bare, same process", "images_per_second": bare, "steady_images_per_second": bare}
        rows.append(
            given.rows, {**row, **own, "train_loss": "", "val_loss": "", "seconds": "", "inner_seconds": ""}
        )
        print(
            f"    bare step in the same process: {bare:.1f} images/s; ours is {found.get('of_bare', 0):.3f} of it"
        )


def tell(row: Mapping[str, Any]) -> None:
    rate = f", {float(row['images_per_second']):.1f} images/s" if row["images_per_second"] else ""
    print(
        f"{row['job']} {row['net']} #{row['repeat']} {row['who']}, {row['setting']}: {row['seconds']:.1f} s{rate}, "
        f"{row['peak_rss_mb']:.0f} MB, load {row['load']:.1f}",
        flush=True,
    )


def shown(command: Sequence[str], options: Options, envs: Path) -> str:
    """Return a command with this machine's own folders left out."""
    places = {
        str(options.work): "WORK", str(options.work.parent): "WORK", str(options.images): "IMAGES",
        str(envs): "ENVS", str(HERE): "benchmarks/speed",
        sys.executable: "python",
    }  # fmt: skip
    if options.weights:
        places[str(options.weights)] = "WEIGHTS"
    text = " ".join(command)
    for place, word in sorted(places.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(place, word)
    return text


# Scaling and memory: ours alone -----------------------------------------------------------------------------------


def scale(options: Options, given: argparse.Namespace) -> int:
    """Measure import, cache, a training epoch and scoring at growing n; returns how many failed."""
    failed = 0
    for n in given.sizes or STEPS:
        made = given.work.resolve() / "made" / str(n)
        quietly((sys.executable, str(HERE / "made.py"), "distinct", str(options.images), str(made), str(n)),
                     env=jobs.FOUND)  # fmt: skip
        for repeat in range(given.repeats):
            for line in stages(options, made, n):
                if not is_there(given.rows, "scale", line, repeat) and not take(options, given, line, repeat):
                    failed += 1
                    break  # the stages after need this one
    print(tables(rows.read(given.rows), "scale", ""))
    return failed


def stages(options: Options, made: Path, n: int) -> list[Contender]:
    side = 64
    data = options.work / "scale" / f"data-{n}"
    base = Contender("ours", "", "cnn", side, n, options.epochs, "", (), options.work)
    holdout = {"scheme": "holdout", "validation": 0.1, "test": 0.1}
    file = write_recipe(options, "cnn", "float32", size=side, split=holdout, mark="scale")
    model = options.work / "model-cnn-64"
    common = replace(options, size=side)
    cached = options.work / "scale" / f"cache-{n}"
    fit = jobs.script(sys.executable, "ours_finetune.py", common, "float32", "cnn", options.work / "scale" / f"fit-{n}",
                      data, "--recipe", str(file))  # fmt: skip
    cache = jobs.script(sys.executable, "ours_cache.py", common, "float32", "cnn", cached, data)
    scored = options.work / "scale" / f"predictions-{n}"
    bring = (*DERMKIT, "import", "folder", str(made), "--out", str(data))
    return [
        replace(base, setting="import", out=data, steps=(bring,)),
        replace(base, setting="cache", out=cached, steps=(cache,)),
        replace(base, setting="train", out=options.work / "scale" / f"fit-{n}", steps=(fit,), env=jobs.PASSIVE),
        replace(base, setting="score", out=scored, before=model_for(common, "cnn", model),
                steps=((*DERMKIT, "predict", str(model), str(made), "--out", str(scored)),)),
    ]  # fmt: skip


def memory(options: Options, given: argparse.Namespace) -> int:
    """Score 10,000 and 200,000 names of the same images: memory must not grow with n."""
    failed = 0
    model = options.work / "model-cnn-64"
    for n in given.sizes or MEMORY:
        links, out = given.work.resolve() / "links" / str(n), options.work / "memory" / str(n)
        quietly((sys.executable, str(HERE / "made.py"), "links", str(options.images), str(links), str(n)),
                     env=jobs.FOUND)  # fmt: skip
        line = Contender(
            "ours", "score links", "cnn", 64, n, 1, "",
            ((*DERMKIT, "predict", str(model), str(links), "--out", str(out)),), out,
            before=model_for(replace(options, size=64), "cnn", model),
        )  # fmt: skip
        if not is_there(given.rows, "memory", line, 0) and not take(options, given, line, 0):
            failed += 1
    for row in rows.read(given.rows):
        if row["job"] == "memory" and row["commit"] == rows.commit():
            print(f"{int(row['n']):,} images: {row['seconds']} s, peak {row['peak_rss_mb']} MB in one process")
    return failed


def features(options: Options, given: argparse.Namespace) -> int:
    """Check that Keras's net and timm's give the same features under the same weights; returns 1 where they differ."""
    import numpy as np

    out = options.work / "features"
    out.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    np.save(out / "pixels.npy", pixels)
    for python, file in (
        (sys.executable, "bare.py"),
        (python_of(given.envs, "keras"), "peers/keras/peer.py"),
    ):
        asking = replace(options, job="features", size=128)
        command = jobs.script(python, file, asking, "defaults", "mobilenetv2", out, out / "pixels.npy")
        quietly([*command, "--weights", str(options.weights)], env=jobs.FOUND)
    ours, theirs = np.load(out / "timm.npy"), np.load(out / "keras.npy")
    apart = float(np.abs(ours - theirs).max())
    print(
        f"largest difference of {ours.size} features: {apart:.2e}; features reach {float(np.abs(ours).max()):.2f}"
    )
    return int(apart > 1e-4)


# The command line -------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("job", choices=(*COMPARED, "features", "scale", "memory", "table"))
    made.add_argument("of", nargs="?", default="", help="with table: the job")
    made.add_argument(
        "--images", type=Path, help="a folder with train and test (s2, agree, finetune), or of images"
    )
    made.add_argument(
        "--weights", type=Path, help="mobilenetv2_100 as safetensors, its JSON beside; else time only"
    )
    made.add_argument("--nets", nargs="+", choices=RECIPES, default=list(RECIPES))
    made.add_argument("--peer", nargs="+", choices=PEERS, help="these peers only (ours and bare stay)")
    made.add_argument("--only", nargs="+", help="these alone, such as: ours, bare, keras")
    made.add_argument("--setting", nargs="+", help="these settings only")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--epochs", type=int, default=0)
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--size", type=int, default=0, help="another side than the job's own")
    made.add_argument("--count", type=int, default=0, help="take this many images (0 = all)")
    made.add_argument("--sizes", type=int, nargs="+", help="scale, memory: these n")
    made.add_argument("--envs", type=Path, default=ENVS)
    made.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dermkit-speed")
    made.add_argument("--rows", type=Path, default=ROWS)
    made.add_argument("--limit", type=float, default=7200.0, help="seconds after which a process is ended")
    made.add_argument(
        "--against", default="", help="the setting of ours that ratios refer to (default: the first)"
    )
    return made


def main() -> None:
    given = parser().parse_args()
    if given.job == "table":
        found = rows.read(given.rows)
        print(tables(found, given.of, given.against))
        return
    if given.images is None and given.job != "features":
        raise SystemExit("--images is missing")
    work = given.work.resolve() / rows.commit()  # what another version of ours left is no cache for this one
    work.mkdir(parents=True, exist_ok=True)
    options = Options(
        given.job, (given.images or given.work).resolve(), work, given.envs.resolve(), given.nets,
        given.weights.resolve() if given.weights else None, given.epochs or EPOCHS.get(given.job, 1), given.batch,
        given.count, given.size, given.only or (), given.setting or (),
    )  # fmt: skip
    missing = [peer for peer in PEERS if not is_ready(options.envs, peer)]
    if missing and given.job in COMPARED:
        print(f"no environment for {', '.join(missing)}: python benchmarks/speed/setup.py makes them")
    does = {"features": features, "scale": scale, "memory": memory}.get(given.job, compare)
    sys.exit(1 if does(options, given) else 0)


if __name__ == "__main__":
    main()
