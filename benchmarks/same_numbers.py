"""Prove that a change of the code moves no number: two versions run the same commands, and all they write is compared.

    python benchmarks/same_numbers.py run --python PYTHON --source SRC --datasets RAW --weights DIR --out BEFORE
    python benchmarks/same_numbers.py run --python PYTHON --source OTHER_SRC --datasets RAW --weights DIR --out AFTER
    python benchmarks/same_numbers.py compare BEFORE AFTER

SRC is a source tree (the folder that holds `dermkit`); RAW holds the unzipped isic9, melanoma10k and ham10000, DIR the
weights files, none of them in the project. A step that is done is skipped: the same command goes on where it was
stopped, on the same source alone. `--only NAME ...` runs or compares some steps.

compare ends with 1 where a figure, a finding, a probability, a weight or an exit code differs, or is missing on one
side. Numbers are compared as they are written, to the last digit. Sentences with the same numbers in other words, and
pictures that differ, are counted and listed apart: titles may be reworded. What is left out is in IGNORED, and what is
meant to differ in EXPECTED, each with why; the latter is listed too.
"""

import argparse
import csv
import difflib
import hashlib
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

# What may be called otherwise in the newer version ------------------------------------------------------------------

RENAMED: Mapping[str, str] = {
    # files
    "decided.csv": "decisions.csv", "decision.json": "policy.json", "colour_rule.csv": "colour_baseline.csv",
    "brought.json": "foreign_predictions.json",
    # a policy, in policy.json, model.json, metrics.json, run.json and predict.json
    "metrics.json/decision": "policy", "predict.json/decision": "policy", "run.json/decision": "policy",
    **{f"{place}/{old}": new for place in ("operating_points", "operating_point", "asked_points")
       for old, new in (("wish", "name"), ("wish_rate", "target"), ("kept", "guaranteed"), ("value", "threshold"),
                        ("asked", "requested"))},
    "asked_points": "requested_points", "operating_point/chosen": "selected_by", "refer/referred": "n_referred",
    "conformal/least": "min_probability", "conformal/n": "n_images", "conformal/units": "n_groups",
    "refer": "referral", "refer/share": "target_coverage", "refer/least_confidence": "min_confidence",
    "refer/answered": "coverage",
    **{f"{coverage}/{old}": new for coverage in ("0.5", "0.7", "0.8", "0.9", "1")
       for old, new in (("least_confidence", "min_confidence"), ("answered", "coverage"))},
    "validation_images": "n_validation_images",
    # metrics.json
    "metrics.json/asked": "options", "asked/wishes": "targets", "wishes/wish_rate": "target", "wishes/wish": "name",
    "decided": "policy", "no_operating_points": "why_no_operating_points", "per_prevalence/found": "true_positives",
    "per_prevalence/missed": "false_negatives", "per_prevalence/false_alarms": "false_positives",
    "per_prevalence/biopsies_per_found": "number_needed_to_biopsy", "conformal/promised": "coverage_target",
    "conformal/sizes": "set_sizes", "metrics.json/units": "n_groups",
    "metrics.json/calibration_images": "n_calibration_images", "metrics.json/calibration_units": "n_calibration_groups",
    "refer/area": "aurc", "refer/error_when_answering": "error_by_coverage",
    "refer/settled": "at_validation_thresholds", "error_when_answering/share": "target_coverage",
    "settled/share": "target_coverage", "settled/least_confidence": "min_confidence", "settled/answered": "coverage",
    "groups/malignant": "n_malignant", "gaps/figure": "metric",
    "seal/opening": "opening_number", "seal/openings": "n_openings", "seal.json/opening": "opening_number",
    # predict.json and decisions.csv
    "predict.json/refused": "n_refused", "predict.json/scored": "n_scored", "predict.json/net": "inference_mode",
    "seen_in_training": "training_images", "no_call": "why_no_call", "cautions": "warnings", "holds_for": "scope",
    "predict.json/sets": "conformal", "sets/least": "min_probability", "sets/n": "n_images",
    "sets/promised": "coverage_target",
    "sets/sizes": "set_sizes", "in_every_set": "always_included", "decision/positive": "n_positive",
    "decided.csv/answer": "referral", "decided.csv/classes": "prediction_set",
    # recipes, runs and tables
    "augment/moved": "p_geometric", "augment/toned": "p_colour",
    **{f"{stage}/share": "p" for stage in ("hsv", "blur_noise", "distort", "clahe", "cutout", "mix")},
    "run.json/kept": "keep",
    "training/kept": "keep", "trained_on": "training_dataset", "name/brought": "foreign",
    "scheme/brought": "foreign", "anchors.csv/who": "readers",
    "grow/to": "target_fraction", "most_copies": "max_copies", "openings/how": "opened_by",
    "named by --at": "named by --target",
    "tune.json/chosen": "best_recipe", "tune.json/by": "selected_by", "tune.csv/chosen": "is_best",
    # data sets and audits
    "made dermoscopy": "synthetic dermoscopy", "accepted_against": "accepted_external", "cleaned": "cleanings",
    "division": "split_sha256", "clear": "checks_passed", "not_applicable": "checks_not_applicable",
    "family_wise_rate/of": "meaning", "acceptance_void": "why_acceptance_invalid", "figures/share": "images",
    "audit.json/of": "total", "audit.json/share": "proportion", "figures/untied": "pairs_not_in_one_group",
    "figures/between": "label_pairs", "figures/sides": "splits", "under_two_labels": "contradictory_pairs",
    "figures/since_import": "changed_since_import", "figures/decisions": "decoding_choices",
    "share_per_class": "fraction_per_class", "figures/lacking": "missing_classes",
    "audit.json/independent": "effective_n",
    "audit.json/supposed": "assumed_rate", "least_difference": "detectable_differences",
    "least_difference/discordant": "discordant_fraction", "least_difference/points": "difference",
    "classes/against": "reference", "lower_adjusted": "lower_bound", "classes/found": "is_shortcut",
    "typical/figure": "statistic", "typical/gap": "separation", "figure/share": "fraction",
    "figures/skipped": "skipped_classes", "present_from_score": "presence_threshold",
    "against_the_rest": "class_against_rest", "tells": "reveals", "DA070/images": "n_images",
    "figures/missing": "n_missing", "figures/extra": "n_extra", "audit.json/images_published": "n_published_images",
    "figures/recognised": "recognised_as", "figures/against": "contradictions", "figures/sets": "contained_sets",
    "sets/gap": "class_gap", "sets/images": "n_images", "sets/missing": "n_missing", "sets/extra": "n_extra",
    "DA002.csv/decision": "decoding_choice", "sharpness_of_median": "relative_sharpness",
    "DA032.csv/figure": "quantity", "DA032.csv/independent": "effective_n", "outranks": "placement_value",
    "copy_image_id": "duplicate_image_id", "copy_path": "duplicate_path", "copy_label": "duplicate_label",
    "copy_split": "duplicate_split", "signal_*": "feature_*", "against-ham10000": "external-ham10000",
    "against.json": "external.json", "against.html": "external.html",
    "against.json/a": "reference", "against.json/b": "external_set", "against.json/external": "is_external",
    "not_new": "shared_images", "against.json/ways": "links_by_type", "blind": "limitations",
    "homonyms": "ambiguous_ids", "against.json/of": "total", "against.json/share": "proportion",
    "sides_of_a": "links_by_reference_split", "figures/found": "linked_images",
    "frame.npy": "global_descriptor.npy", "disc.npy": "patch_descriptors.npy", "place.npy": "keypoints.npy",
    "polar.npy": "polar_patches.npy", "dark_share": "dark_fraction", "bright_share": "bright_fraction",
    **{f"block-{number:05}.csv/changed": "state" for number in range(20)},
    # tables of runs and comparisons
    "anchors.csv": "reader_studies.csv", "share_of_label": "fraction_of_label",
    "calibrated_found": "calibrated_true_positives",
    "calibrated_false_alarms": "calibrated_false_positives",
    **{f"net_benefit_{split}.csv/{old}": new for split in ("train", "validation", "test")
       for old, new in (("malignant", "n_malignant"), ("model", "as_trained"), ("found", "true_positives"),
                        ("false_alarms", "false_positives"))},
    "published/figures": "figures", "comparison.json/figures": "metrics", "moved_by": "variance_components",
    "comparison.json/trainings": "n_trainings",
    "pairs/kind": "design", "discordant": "discordant_counts", "comparison.json/found": "is_significant",
    "borrowed": "is_spread_borrowed", "kind/folds": "folds", "comparison.json/folds": "n_folds",
    "published/beside": "comparisons",
    "published/fits": "fits_by_average", "consistent": "is_consistent", "beside/figure": "metric", "beside/own": "run",
    "compare/figure": "metric", "compare/kind": "design", "compare/folds": "n_folds",
    "first_alone_right": "first_only_correct", "second_alone_right": "second_only_correct",
    "first_trainings": "n_trainings_first", "second_trainings": "n_trainings_second",
    "leaderboard.csv/trainings": "n_trainings", "wrong_in": "n_wrong",
}  # fmt: skip
"""Old name -> new name: of files and folders, JSON keys, CSV columns, tensors and whole texts.

`PLACE/NAME` holds in the file, in the audit's finding or right under the JSON key PLACE alone; for a column also in the
tables below the folder PLACE, for a cell in the column PLACE: `operating_points/kept`, `run.json/kept`. A name that
ends with * stands for all that begin so.
"""

FLAGS: Mapping[str, str] = {"--target": "--wish"}
"""New flag -> the older one. Steps say the new one; what the verb's --help shows is used."""

IGNORED: Mapping[str, str] = {
    "seconds": "time", "train_seconds": "time", "images_per_second": "time", "minutes": "time",
    "minutes_training": "time", "date": "time", "started": "time", "ended": "time",
    "versions": "environment", "platform": "environment", "machine": "environment", "cpus": "environment",
    "environment.json": "environment",
    "commit": "code version", "dermkit": "code version",
    "manifest_sha256": "hash of a file whose every cell is compared",
    "model_sha256": "hash of a JSON whose every value is compared",
    "SHA256SUMS": "hashes of files that are compared",
    "location.json": "an absolute path",
    ".lock": "process id", ".lock-owner": "process id",
    "cache": "pixels and features in an internal form; what is computed from them is compared",
}  # fmt: skip
"""Files, folders, keys and columns that are left out -> why. So is the header of a weights file: times and notes."""

MASKS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"\b[0-9a-f]{12}(?=-s\d)"), "RUN"),
    (re.compile(r"\b(given|given-as-published|holdout|kfold)-[0-9a-f]{8}\b"), r"\1-SPLIT"),
)
"""Folders and splits named by a hash of a recipe, whose keys may be renamed -> without it, in paths and texts."""

PROSE_MASKS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "SHA256"),
    (re.compile(r"\b\d{4}-\d\d-\d\d(T[\d:.+Z-]*)?"), "DATE"),
    (re.compile(r"[\d.,]+ (seconds|minutes|hours)\b"), "DURATION"),
    (re.compile(r"\bdermkit \d[\w.+]*"), "dermkit VERSION"),
)
"""Times and hashes in pages and sentences."""

SUBGROUPS = (
    "subgroups: a figure that needs an absent class is null; the mean over classes present has its own name"
)
EXPECTED: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"\.json \.format$"), "a format was raised"),
    (re.compile(r"/external\.json \.findings\[\d+\]\.kind$"), "a key that is new"),
    (re.compile(r"/scan/scan\.json \.(version|files)$"), "the files of a scan have other names"),
    (re.compile(r"/metrics\.json \.splits\.\w+\.subgroups\..*\.(balanced_accuracy|recall_macro_present)\b"), SUBGROUPS),
    (re.compile(r"/metrics\.json \.splits\.\w+\.subgroups\.\w+\.gaps"), SUBGROUPS),
    (re.compile(r"/report\.html (By|Test, by|Validation, by) (age|sex|site|skin type)"), SUBGROUPS),
)  # fmt: skip
"""Places whose difference is meant -> why. They are counted and listed apart, and looked at by a person."""

# The steps ----------------------------------------------------------------------------------------------------------

THREADS = 1
"""Threads of one multiplication. One is the same on every machine, and leaves a core to others."""

VARIABLES: Mapping[str, str] = {
    **{f"{name}_NUM_THREADS": str(THREADS) for name in ("OMP", "MKL", "OPENBLAS")},
    "COLUMNS": "200", "NO_COLOR": "1",
}  # fmt: skip


@dataclass(frozen=True)
class ShortRecipe:
    """A recipe cut short. epochs: of each phase; views: at most so many of a frozen phase."""

    recipe: str
    epochs: tuple[int, ...]
    views: int = 0


SHORT_RECIPES: Mapping[str, ShortRecipe] = {
    "s1-short": ShortRecipe("s1-cnn", (2,)),
    "s2-short": ShortRecipe("s2-finetuned-mobilenetv2", (4, 2), views=2),
    "s4-short": ShortRecipe("s4-cnn", (3,)),
}
"""Name of a recipe file -> the recipe it is made from: in full, these three take half an hour on one thread."""

MOBILENET = "{weights}/mobilenetv2_100.fp16.safetensors"
RECORD, PRINTED, TABLE = "record", "printed", "record/table.csv"
SEAL = "data/isic9/splits/sealed.seal.json"
UNCLAIMED = "other"
AUDIT_CODES = (0, 3)
STEPS_HEADER = ("step", "command", "code", "seconds")


@dataclass(frozen=True)
class Step:
    """One command of dermkit, run in the folder OUT.

    command: its words; `{raw}`, `{weights}` and `{run:STEP}` (the run folder of a training) are filled in. outputs:
    how the paths that it writes begin. codes: the exit codes it may end with. copy: (run, path), a run folder that is
    copied first, since the command changes it. table: make TABLE from this run first.
    """

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    copy: tuple[str, str] = ("", "")
    table: str = ""


def _import(layout: str, name: str, folder: str = "") -> Step:
    out = f"data/{folder or name}"
    command = ("import", layout, f"{{raw}}/{name}", "--out", out)
    return Step(f"import-{folder or name}", command, (f"{out}/",))


def _audit(name: str, *options: str) -> Step:
    return Step(f"audit-{name}", ("audit", f"data/{name}", *options), (f"data/{name}/audit/",), AUDIT_CODES)


def _split(dataset: str, name: str, *options: str) -> Step:
    command = ("split", f"data/{dataset}", "--name", name, *options)
    return Step(f"split-{dataset}-{name}", command, (f"data/{dataset}/splits/{name}.",))


def _train(name: str, recipe: str, dataset: str, split: str = "", *, scheme: str = "", weights: str = "") -> Step:
    """split: one of the data set; without it, the recipe makes a split of its own, by `scheme`."""
    command = ["train", recipe, f"data/{dataset}", "--out", f"runs/{name}", "--device", "cpu"]
    command += ["--split", split] if split else []
    command += ["--weights", weights] if weights else []
    splits = (f"data/{dataset}/splits/{scheme}-SPLIT.",) if scheme else ()
    return Step(f"train-{name}", tuple(command), (f"runs/{name}/", *splits))


def _on_copy(name: str, run: str, *options: str, verb: str = "evaluate") -> Step:
    folder = f"{verb}/{name}"
    return Step(f"{verb}-{name}", (verb, folder, *options), (f"{folder}/",), copy=(f"{{run:train-{run}}}", folder))


def _to_folder(verb: str, name: str, *words: str, table: str = "") -> Step:
    folder = f"{verb}/{name}"
    return Step(f"{verb}-{name}", (verb, *words, "--out", folder), (f"{folder}/",), table=table)


OPEN_TEST = ("--open-test", "data/isic9")
S2_PRINT = ("--published", "S2 in print: accuracy=.4661,n=118")
S3_PRINT = ("--published", "S3 in print: accuracy=.74,precision=.76,recall=.71,specificity=.75")
NEW_IMAGES = tuple(f"{{raw}}/ham10000/images/ISIC_00{number}*.jpg" for number in (244, 270, 310))
STEPS: Sequence[Step] = (
    Step("demo", ("demo", "--out", "demo"), ("demo/",)),
    Step("recipes", ("recipes", "list")),
    Step("codes", ("audit", "--codes")),
    _import("folder", "isic9"),
    _import("folder", "melanoma10k"),
    _import("ham10000", "ham10000"),
    _import("folder", "isic9", "isic9-clean"),
    _audit("isic9"),
    _audit("ham10000"),
    _audit("melanoma10k"),
    _audit("isic9-clean", "--clean", "--use", "commercial"),
    Step("audit-against", ("audit", "data/isic9", "--against", "data/ham10000"), ("data/isic9/audit/against",),
         AUDIT_CODES),
    _split("isic9", "given", "--scheme", "given"),
    _split("isic9", "given-as-published", "--scheme", "given-as-published"),
    _split("isic9", "holdout", "--scheme", "holdout"),
    _split("isic9", "kfold", "--scheme", "kfold", "--folds", "3"),
    _split("isic9", "sealed", "--scheme", "holdout", "--seed", "1", "--seal"),
    _split("melanoma10k", "given", "--scheme", "given"),
    _split("melanoma10k", "balanced", "--scheme", "holdout", "--per-class", "584", "--draw-from", "train"),
    _split("ham10000", "holdout", "--scheme", "holdout", "--validation", "0.2", "--test", "0.1"),
    _split("ham10000", "kfold", "--scheme", "kfold", "--folds", "4", "--validation", "0.1", "--seed", "3"),
    _train("s2", "s2-resnet50-mobilenetv2", "isic9", "given", weights=MOBILENET),
    _train("s2-normalised", "s2-normalised-mobilenetv2", "isic9", "given", weights=MOBILENET),
    _train("s2-folds", "s2-normalised-mobilenetv2", "isic9", "kfold", weights=MOBILENET),
    _train("s2-sealed", "s2-normalised-mobilenetv2", "isic9", "sealed", weights=MOBILENET),
    _train("s2-finetuned", "s2-short", "isic9", "given", weights=MOBILENET),
    _train("s3", "s3-resnet50-mobilenetv2", "melanoma10k", scheme="holdout", weights=MOBILENET),
    _train("s4", "s4-short", "isic9", "given"),
    _train("s1", "s1-short", "melanoma10k", scheme="given"),
    _on_copy("again", "s2"),
    _on_copy("targets", "s2", "--official", "--target", "sensitivity=.97", "--target", "specificity=.8",
             "--prevalence", ".03", "--keep"),
    _on_copy("opened", "s2-sealed", *OPEN_TEST),
    _on_copy("report", "s2-finetuned", verb="report"),
    _to_folder("evaluate", "s1-on-ham10000", "{run:train-s1}", "--on", "data/ham10000"),
    _to_folder("evaluate", "s2-on-isic9-clean", "{run:train-s2}", "--on", "data/isic9-clean", "--target",
               "sensitivity=.9", "--prevalence", ".02"),
    _to_folder("evaluate", "s3-on-isic9", "{run:train-s3}/model", "--on", "data/isic9", *OPEN_TEST),
    _to_folder("evaluate", "predictions", "--predictions", "{run:train-s4}/predictions.csv", "--prevalence", ".1"),
    _to_folder("evaluate", "table", "--predictions", TABLE, "--on", "data/isic9", "--official", *OPEN_TEST,
               table="{run:train-s2}"),
    _to_folder("compare", "s2", *(f"{{run:train-{name}}}" for name in ("s2", "s2-normalised", "s2-finetuned")),
               *S2_PRINT),
    _to_folder("compare", "pair", "{run:train-s2}", "{run:train-s4}", *S2_PRINT),
    _to_folder("compare", "repeats", "{run:train-s3}", *S3_PRINT),
    _to_folder("compare", "folds", "{run:train-s2-folds}", "{run:train-s1}"),
    _to_folder("predict", "s2", "evaluate/targets/model", *NEW_IMAGES, "--at", "sensitivity=.97", "--refer", "0.8",
               "--device", "cpu"),
    _to_folder("predict", "s1", "{run:train-s1}", *NEW_IMAGES[:1], "--device", "cpu"),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Where a version lies and what it reads."""

    python: Path
    source: Path
    datasets: Path
    weights: Path
    out: Path

    def dermkit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of this version in `out`."""
        command = [str(self.python), "-m", "dermkit.cli", *words]
        return subprocess.run(
            command, cwd=self.out, env=self._variables(), capture_output=True, text=True, check=False
        )

    def code_path(self) -> Path:
        """Return the folder that this version's Python takes dermkit from."""
        command = [str(self.python), "-c", "import dermkit; print(dermkit.__file__)"]
        result = subprocess.run(
            command, cwd=self.out, env=self._variables(), capture_output=True, text=True, check=True
        )
        return Path(result.stdout.strip()).resolve().parent

    def code_hash(self) -> str:
        """Return a hash of every file of the source."""
        digest = hashlib.sha256()
        for path in sorted((self.source / "dermkit").rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                name = path.relative_to(self.source)
                digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def _variables(self) -> dict[str, str]:
        compiled = str(self.out / RECORD / "pycache")  # nothing is written into the source
        return {**os.environ, **VARIABLES, "PYTHONPATH": str(self.source), "PYTHONPYCACHEPREFIX": compiled}

    def known_paths(self) -> dict[str, str]:
        """Return path -> what it is called in a comparison."""
        return {str(self.datasets): "RAW", str(self.weights): "WEIGHTS", str(self.out): "OUT"}


# run ----------------------------------------------------------------------------------------------------------------


def run(setting: Setting, only: Sequence[str]) -> None:
    """Run every step that is not done yet; stops at an exit code that is not the step's own."""
    (setting.out / RECORD / PRINTED).mkdir(parents=True, exist_ok=True)
    _check_source(setting)
    _write_short_recipes(setting)
    for step in chosen_steps(only):
        if step.name in read_steps(setting.out):
            continue
        if setting.code_hash() != _read_json(setting.out / RECORD / "setting.json")["source_sha256"]:
            raise SystemExit(f"{setting.source} was changed while it was measured")
        _run_step(setting, step)


def chosen_steps(only: Sequence[str]) -> list[Step]:
    """Return the steps of these names, all of them for none."""
    names = {step.name for step in STEPS}
    if unknown := sorted(set(only) - names):
        raise SystemExit(f"no such step: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    return [step for step in STEPS if not only or step.name in only]


def read_steps(out: Path) -> dict[str, dict[str, str]]:
    """Return the steps that are done: name -> its row."""
    path = out / RECORD / "steps.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["step"]: row for row in csv.DictReader(stream)}


def _check_source(setting: Setting) -> None:
    """Refuse another dermkit than that of `source`, and a folder that another version or setting has begun."""
    code = setting.code_path()
    if code != (setting.source / "dermkit").resolve():
        raise SystemExit(f"{setting.python} takes dermkit from {code}, not from {setting.source}")
    record = {
        "source_sha256": setting.code_hash(),
        "variables": dict(VARIABLES),
        "paths": setting.known_paths(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
    }
    path = setting.out / RECORD / "setting.json"
    previous = _read_json(path) if path.exists() else record
    if differing := [key for key, value in record.items() if previous[key] != value]:
        raise SystemExit(f"{setting.out} was begun with another {', '.join(differing)}: {path}")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _write_short_recipes(setting: Setting) -> None:
    for name, short in SHORT_RECIPES.items():
        path = setting.out / RECORD / f"{name}.json"
        if path.exists():
            continue
        body = json.loads(_succeed(setting.dermkit("recipes", "show", short.recipe)).stdout)
        body["name"], body["about"] = name, f"{body['about']} Cut short, to compare versions."
        for phase, epochs in zip(body["phases"], short.epochs, strict=True):
            phase["epochs"], phase["views"] = epochs, min(phase["views"], short.views)
        path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _succeed(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if result.returncode != 0:
        raise SystemExit(f"{result.args}: exit code {result.returncode}\n{result.stderr[-3000:]}")
    return result


def _run_step(setting: Setting, step: Step) -> None:
    for output in step.outputs:  # what an interrupted step has left
        if output.endswith("/"):
            shutil.rmtree(setting.out / output, ignore_errors=True)
    _restore_seal(setting.out, step)
    if step.copy[0]:
        shutil.copytree(setting.out / _fill(step.copy[0], setting), setting.out / step.copy[1])
    if step.table:
        _write_table(setting.out / _fill(step.table, setting) / "predictions.csv", setting.out / TABLE)
    words = _current_flags(setting, [_fill(word, setting) for word in step.command])
    begin = time.perf_counter()
    result = setting.dermkit(*words)
    seconds = round(time.perf_counter() - begin, 1)
    printed = setting.out / RECORD / PRINTED / step.name
    printed.with_suffix(".txt").write_text(result.stdout, encoding="utf-8")
    printed.with_suffix(".err").write_text(result.stderr, encoding="utf-8")
    print(f"{step.name}: exit code {result.returncode}, {seconds} s", flush=True)
    if result.returncode not in step.codes:
        raise SystemExit(
            f"{step.name} must end with {step.codes}: dermkit {' '.join(words)}\n{result.stderr[-3000:]}"
        )
    path = setting.out / RECORD / "steps.csv"
    row = (step.name, " ".join(words), result.returncode, seconds)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([STEPS_HEADER, row] if is_new else [row])


def _restore_seal(out: Path, step: Step) -> None:
    """Give an interrupted step the seal's ledger as it first met it: an opening that is tried again counts once."""
    seal, copy = out / SEAL, out / RECORD / "seals" / f"{step.name}.json"
    copy.parent.mkdir(exist_ok=True)
    if copy.exists():
        shutil.copyfile(copy, seal)
    elif seal.exists():
        shutil.copyfile(seal, copy)


def _fill(word: str, setting: Setting) -> str:
    """Return a word of a command with paths filled in."""
    if word in SHORT_RECIPES:
        return f"{RECORD}/{word}.json"
    word = word.replace("{raw}", str(setting.datasets)).replace("{weights}", str(setting.weights))
    return re.sub(r"\{run:([\w-]+)\}", lambda match: _run_folder(setting.out, match[1]), word)


def _run_folder(out: Path, step: str) -> str:
    """Return the folder of the report that a training named last."""
    path = out / RECORD / PRINTED / f"{step}.txt"
    if not path.exists():
        raise SystemExit(f"{step} is not done yet")
    return str(Path(path.read_text(encoding="utf-8").strip().splitlines()[-1]).parent)


def _current_flags(setting: Setting, words: Sequence[str]) -> list[str]:
    """Return the words with each flag that this version does not know replaced by its older name."""
    if not set(words) & set(FLAGS):
        return list(words)
    text = _succeed(setting.dermkit(words[0], "--help")).stdout
    return [FLAGS[word] if word in FLAGS and word not in text else word for word in words]


def _write_table(predictions: Path, path: Path) -> None:
    """Write a run's test predictions as another tool would: an id, a column for each class, four decimals."""
    with predictions.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    columns = [name for name in rows[0] if name.startswith("p_")]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", *(name.removeprefix("p_") for name in columns)])
        writer.writerows([row["image_id"], *(f"{float(row[name]):.4f}" for name in columns)] for row in rows)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# What a file says ---------------------------------------------------------------------------------------------------

WORDS_OF_A_NAME = 4
"""A text of more words is a sentence: its numbers are compared, and its words apart."""

CELLS = frozenset({"th", "td", "dt", "dd"})
HIDDEN = frozenset({"style", "script"})
HEADINGS = frozenset({"h1", "h2", "h3", "h4"})
NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass
class Content:
    """What a file says. values: where -> number, text or hash of an array; sizes: where -> numbers in an array.

    prose: running text, whose numbers count, and whose words are compared apart; pictures: their hashes.
    """

    values: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    prose: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


class Reader:
    """Reads the files of one version; names of the older one are renamed."""

    def __init__(self, out: Path, renamed: Mapping[str, str]) -> None:
        self.out, self.renamed = out, renamed
        self.paths = _read_json(out / RECORD / "setting.json")["paths"]
        self.readers: Mapping[str, Callable[[Path], Content]] = {
            ".json": self._json, ".csv": self._csv, ".html": self._html, ".md": self._text, ".txt": self._text,
            ".npy": _array, ".safetensors": self._tensors, ".png": _picture, ".jpg": _picture,
        }  # fmt: skip

    def files(self) -> dict[str, Path]:
        """Return the name in a comparison -> path, of all files but those in IGNORED."""
        files: dict[str, Path] = {}
        for path in sorted(self.out.rglob("*")):
            components = path.relative_to(self.out).parts
            if not path.is_file() or set(components) & set(IGNORED) or _is_note(components):
                continue
            name = "/".join(self._name(component) for component in components)
            if name in files:
                raise SystemExit(f"{path} and {files[name]} have one name without their hashes: {name}")
            files[name] = path
        return files

    def read(self, path: Path) -> Content:
        """Return what a file says; raises `SystemExit` for a kind of file that nobody has thought of."""
        if path.suffix not in self.readers:
            raise SystemExit(f"{path}: no way to compare a {path.suffix or 'file without ending'}; see IGNORED")
        return self.readers[path.suffix](path)

    def _name(self, name: str, *scopes: str) -> str:
        """Return a name as the newer version says it. scopes: the key above it, the file."""
        plain = self._mask(name)
        for scope in scopes:
            if new := self.renamed.get(f"{scope}/{plain}"):
                return new
        for old, new in self.renamed.items():
            if old.endswith("*") and plain.startswith(old[:-1]):
                return new[:-1] + plain[len(old) - 1 :]
        return self.renamed.get(plain, plain)

    def _mask(self, text: str) -> str:
        for path, name in self.paths.items():
            text = text.replace(path, name)
        for pattern, name in MASKS:
            text = pattern.sub(name, text)
        return text

    def _json(self, path: Path) -> Content:
        content = Content()
        body = json.loads(
            path.read_text(encoding="utf-8"), parse_float=_Literal, parse_int=_Literal, parse_constant=_Literal
        )
        self._walk(body, "", ("", "", path.name), content)
        return content

    def _walk(self, body: object, where: str, scopes: tuple[str, str, str], content: Content) -> None:
        """Add every leaf of a JSON. scopes: the key above, the code of the finding, and the file."""
        if isinstance(body, dict):
            code = str(body.get("code", scopes[1]))
            for key, value in body.items():
                if key in IGNORED:
                    content.ignored.append(key)
                else:
                    self._walk(value, f"{where}.{self._name(key, *scopes)}", (key, code, scopes[2]), content)
        elif isinstance(body, list):
            if not body:
                content.values[where] = "an empty list"
            for index, value in enumerate(body):
                self._walk(value, f"{where}[{index}]", scopes, content)
        elif not isinstance(body, str) or isinstance(body, _Literal):
            content.values[where] = str(body)
        elif len(body.split()) > WORDS_OF_A_NAME:
            content.prose[where] = self._prose(body)
        else:
            content.values[where] = self._name(body, *scopes)

    def _csv(self, path: Path) -> Content:
        content = Content()
        with path.open(newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
        scopes = (path.name, path.relative_to(self.out).parts[0])
        columns = [self._name(column, *scopes) for column in header]
        content.values["columns"] = ", ".join(columns)
        for number, row in enumerate(rows, start=1):
            for old, column, cell in zip(header, columns, row, strict=True):
                if old in IGNORED:
                    content.ignored.append(old)
                else:
                    content.values[f"row {number}, {column}"] = self._name(cell, old, path.name)
        return content

    def _html(self, path: Path) -> Content:
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        sections = {heading: self._prose(" ".join(words)) for heading, words in page.sections.items()}
        return Content(prose=sections, pictures=page.pictures, ignored=page.ignored)

    def _text(self, path: Path) -> Content:
        return Content(prose={"": self._prose(path.read_text(encoding="utf-8"))})

    def _prose(self, text: str) -> str:
        text = self._mask(text)
        for pattern, name in PROSE_MASKS:
            text = pattern.sub(name, text)
        return " ".join(text.split())

    def _tensors(self, path: Path) -> Content:
        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        content = Content()
        for key, item in sorted(json.loads(data[8:begin]).items()):
            if key == "__metadata__":
                continue
            name = self._name(key, path.name)
            low, high = item["data_offsets"]
            content.values[name] = f"{item['dtype']} {item['shape']} {_digest(data[begin + low : begin + high])}"
            content.sizes[name] = math.prod(item["shape"])
        return content


class _Literal(str):
    """A number of a JSON file, as it is written there."""

    __slots__ = ()


def _is_note(components: Sequence[str]) -> bool:
    """Tell whether a file is what this script itself notes of a run."""
    if components[0] != RECORD:
        return False
    return components[1] in {"pycache", "seals", "steps.csv", "setting.json"} or components[-1].endswith(".err")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _array(path: Path) -> Content:
    array = np.load(path, allow_pickle=False)
    text = f"{array.dtype} {list(array.shape)} {_digest(np.ascontiguousarray(array).tobytes())}"
    return Content(values={"array": text}, sizes={"array": array.size})


def _picture(path: Path) -> Content:
    return Content(pictures=[_digest(path.read_bytes())])


class _Page(HTMLParser):
    """The visible words of a page, tooltips included, and hashes of its pictures, without what IGNORED names.

    sections: heading -> the words below it; the heading's own words are among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, list[str]] = {"": []}
        self.pictures: list[str] = []
        self.ignored: list[str] = []
        self._words = self.sections[""]
        self._heading: list[str] | None = None
        self._is_title = False
        self._columns: dict[int, str] = {}
        self._column = -1
        self._cells: list[list[str]] = []
        self._term = ""
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take tooltips and pictures, and note which column or row this is."""
        if tag in HIDDEN:
            self._hidden += 1
        elif tag in HEADINGS:
            self._heading, self._is_title = [], tag == "h1"
        elif tag == "table":
            self._columns = {}
        elif tag == "tr":
            self._column = -1
        elif tag in CELLS:
            self._column += 1
            self._cells.append([])
        for name, value in attrs:
            if name == "title" and value:
                self.handle_data(value)
            elif name == "src" and value and value.startswith("data:"):
                self.pictures.append(_digest(value.encode()))

    def handle_data(self, data: str) -> None:
        """Take visible words."""
        if self._hidden:
            return
        if self._heading is not None:
            self._heading.append(data)
        else:
            (self._cells[-1] if self._cells else self._words).append(data)

    def handle_endtag(self, tag: str) -> None:
        """End a cell: its words stay where its column or row is compared."""
        if tag in HIDDEN:
            self._hidden -= 1
        elif tag in HEADINGS:
            self._begin_section()
        elif tag in CELLS:
            text = " ".join(" ".join(self._cells.pop()).split())
            if tag == "dt":
                self._term = _as_key(text)
            elif tag == "th" and _as_key(text) in IGNORED:
                self._columns[self._column] = _as_key(text)
            heading = self._term if tag == "dd" else self._columns.get(self._column, "")
            if heading in IGNORED and tag != "dt":
                self.ignored.append(heading)
            else:
                self.handle_data(text)

    def _begin_section(self) -> None:
        heading = " ".join(" ".join(self._heading or []).split())
        self._heading = None
        self._words = self.sections.setdefault("title" if self._is_title else heading, [])
        self._words.append(heading)

    def close(self) -> None:
        """End the page; raises `SystemExit` where a cell is open, since what is in it would be lost."""
        super().close()
        if self._cells:
            raise SystemExit(f"a page leaves a cell open: {self._cells[-1]}")


def _as_key(text: str) -> str:
    """Return the JSON key or CSV column that a heading stands for."""
    return text.lower().split(",")[0].replace(" ", "_")


# compare ------------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was compared of a step, and what differs: a line each.

    numbers: in tables, JSON and text; in_arrays: weights, optimizer states and image descriptions.
    """

    files: int = 0
    numbers: int = 0
    in_arrays: int = 0
    texts: int = 0
    pictures: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    differing_numbers: list[str] = field(default_factory=list)
    differing_texts: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    differing_pictures: list[str] = field(default_factory=list)
    reworded: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def count(self, content: Content) -> None:
        """Add what a file of the older version holds."""
        self.files += 1
        self.ignored.update(content.ignored)
        self.pictures += len(content.pictures)
        self.in_arrays += sum(content.sizes.values())
        for where, text in content.values.items():
            if where not in content.sizes:
                self.numbers += _is_number(text)
                self.texts += not _is_number(text)
        for text in content.prose.values():
            self.numbers += len(NUMBER.findall(text))
            self.texts += 1

    @property
    def is_equal(self) -> bool:
        """Tell whether nothing that counts differs."""
        return not (self.differing_numbers or self.differing_texts or self.missing)


def compare(before: Path, after: Path, only: Sequence[str]) -> int:
    """Print what is equal and what differs, step by step; returns 1 where something that counts differs."""
    sources = [_read_json(out / RECORD / "setting.json")["source_sha256"] for out in (before, after)]
    readers = Reader(before, {} if sources[0] == sources[1] else RENAMED), Reader(after, {})
    tallies = {step.name: Tally() for step in chosen_steps(only)}
    _compare_codes(read_steps(before), read_steps(after), tallies)
    if not only:
        tallies[UNCLAIMED] = Tally()
    old_files, new_files = (reader.files() for reader in readers)
    for name in sorted({*old_files, *new_files}):
        tally = tallies.get(step_of(name))
        if tally is None:
            continue
        if name not in old_files or name not in new_files:
            tally.missing.append(f"{name}: only {'before' if name in old_files else 'after'}")
            continue
        old, new = readers[0].read(old_files[name]), readers[1].read(new_files[name])
        tally.count(old)
        _compare_contents(name, old, new, tally)
    _print_table(tallies)
    equal = all(tally.is_equal for tally in tallies.values())
    print("\nEqual to the last digit." if equal else "\nNOT equal.")
    return 0 if equal else 1


def step_of(name: str) -> str:
    """Return the step that wrote a file: the one whose outputs name it most exactly."""
    components = name.split("/")
    if components[:2] == [RECORD, PRINTED]:
        return components[2].removesuffix(".txt")
    if components[0] == RECORD:
        recipe = components[1].removesuffix(".json")
        return next(step.name for step in STEPS if {recipe, name} & set(step.command))
    lengths = [(len(start), step.name) for step in STEPS for start in step.outputs if name.startswith(start)]
    return max(lengths)[1] if lengths else UNCLAIMED


def _compare_codes(
    old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]], tallies: Mapping[str, Tally]
) -> None:
    for name, tally in tallies.items():
        codes = [rows[name]["code"] if name in rows else "not run" for rows in (old, new)]
        if codes[0] != codes[1] or "not run" in codes:
            tally.missing.append(f"exit code before {codes[0]}, after {codes[1]}")


def _compare_contents(name: str, old: Content, new: Content, tally: Tally) -> None:
    for where in dict.fromkeys([*old.values, *old.prose, *new.values, *new.prose]):
        was, is_now = (content.values.get(where, content.prose.get(where)) for content in (old, new))
        place = f"{name} {where}".strip()
        if was == is_now:
            continue
        if reason := next((reason for pattern, reason in EXPECTED if pattern.search(place)), ""):
            tally.expected.append(f"{reason}: {place}: {was} -> {is_now}")
        elif was is None or is_now is None:
            tally.missing.append(f"{place}: only {'before' if is_now is None else 'after'}: {was or is_now}")
        elif where in old.prose and where in new.prose:
            _compare_prose(place, was, is_now, tally)
        elif where in old.sizes or (_is_number(was) and _is_number(is_now)):
            tally.differing_numbers.append(f"{place}: {was} -> {is_now}")
        else:
            tally.differing_texts.append(f"{place}: {was} -> {is_now}")
    if old.pictures != new.pictures:
        pairs = itertools.zip_longest(old.pictures, new.pictures)
        n_differing = sum(was != is_now for was, is_now in pairs)
        tally.differing_pictures.append(f"{name}: {n_differing} of {len(old.pictures)}")


def _compare_prose(place: str, old: str, new: str, tally: Tally) -> None:
    """Compare the numbers of two texts in their order, and their words apart."""
    old_numbers, new_numbers = list(_numbers(old)), list(_numbers(new))
    changes = list(_changes([number for number, _ in old_numbers], [number for number, _ in new_numbers]))
    for old_part, new_part in changes:
        pairs = itertools.zip_longest(old_numbers[old_part], new_numbers[new_part], fillvalue=("", "nothing"))
        tally.differing_numbers += [f"{place}: `{was}` -> `{is_now}`" for (_, was), (_, is_now) in pairs]
    if not changes:
        old_words, new_words = old.split(), new.split()
        old_part, new_part = next(_changes(old_words, new_words))
        tally.reworded.append(f"{place}: `{' '.join(old_words[old_part])}` -> `{' '.join(new_words[new_part])}`")


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[slice, slice]]:
    """Yield the stretches where two lists differ."""
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, low, high, new_low, new_high in matcher.get_opcodes():
        if kind != "equal":
            yield slice(low, high), slice(new_low, new_high)


def _numbers(text: str) -> Iterator[tuple[str, str]]:
    """Yield each number of a text, and it with the words before it."""
    for match in NUMBER.finditer(text):
        yield match[0], text[max(0, match.start() - 40) : match.end()]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _print_table(tallies: Mapping[str, Tally]) -> None:
    counts = ("files", "numbers", "in_arrays", "texts", "pictures")
    lists = ("differing_numbers", "differing_texts", "missing", "expected", "differing_pictures", "reworded")
    rows = {
        name: [*(getattr(tally, count) for count in counts), *(len(getattr(tally, lines)) for lines in lists)]
        for name, tally in tallies.items()
    }
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    print(f"{'step':32}", *(f"{head.replace('differing_', '!= '):>12}" for head in (*counts, *lists)))
    for name, row in rows.items():
        print(f"{name:32}", *(f"{value:12,}" for value in row))
    ignored = sum((tally.ignored for tally in tallies.values()), Counter[str]())
    print("\nleft out, values:", ", ".join(f"{name} {count} ({IGNORED[name]})" for name, count in ignored.items()))
    for name in lists:
        _print_lines(name, [line for tally in tallies.values() for line in getattr(tally, name)])


def _print_lines(title: str, lines: Sequence[str], most: int = 40) -> None:
    if lines:
        print(f"\n{title.replace('_', ' ')}:", *(line[:400] for line in lines[:most]), sep="\n  ")
    if len(lines) > most:
        print(f"  and {len(lines) - most} more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    for name in ("python", "source", "datasets", "weights", "out"):
        running.add_argument(f"--{name}", type=Path, required=True)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    for verb in (running, comparing):
        verb.add_argument("--only", nargs="+", default=[], metavar="STEP")
    options = parser.parse_args()
    if options.verb == "compare":
        sys.exit(compare(options.before, options.after, options.only))
    places = (options.source, options.datasets, options.weights, options.out)
    # A virtual environment's Python is a link that must not be followed.
    run(Setting(options.python.absolute(), *(place.resolve() for place in places)), options.only)


if __name__ == "__main__":
    main()
