"""Doubts: what speaks against the figures of an evaluated run, each with where its evidence is and what to do.

A rule over figures that are already in metrics.json, run.json and lint.json; nothing is computed from images here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dermkit.metrics.stats.estimate import reliability
from dermkit.runs.sentences import Figure, Fragments, plain_text

DoubtWeight = Literal["refuse", "care"]
"""refuse: the figures are not what they seem, or show nothing of lesions. care: they hold with this reservation."""

MIN_OUTCOME_IMAGES = 30
"""Fewer malignant, or fewer other, images are doubted: metrics of them are then unreliable, marked or not."""

LEAK_SHARE = 0.05
"""From this share of leaking test images on a run is not believed: it may move a figure by as much."""

STRONG_SHARE = {
    "source": 0.5,
    "file": 0.5,
    "border": 0.5,
    "metadata": 0.5,
    "mean_colour": 0.8,
    "colour_histogram": 0.8,
}
"""Rule -> the share of the net's gain over chance from which a rule that the net beats is named all the same. Colour is
partly the lesion's own, so more of it is needed."""

SLOPE_RANGE, INTERCEPT_LIMIT = (0.8, 1.25), 0.3
"""A calibration is doubted where the whole interval of its slope, or of its intercept, lies beyond these."""

GROUP_ALPHA, GROUP_DIFFERENCE, GROUP_MIN = 0.01, 0.1, 20
"""A group is named from this chance on, over all groups and rates together; only where it is worse than the others by
this much, on this many images."""

LEAK_CODES = frozenset({"DA012", "DA015", "DA020", "DA021"})
SHORTCUT_CODES = frozenset({"DA040", "DA041", "DA042", "DA043", "DA044", "DA045", "DA046", "DA047", "DA050", "DA051",
                            "DA052", "DA053", "DA060"})  # fmt: skip
"""Audit checks of copies on two sides, and of what tells a class beside the lesion."""

LINT_WARNINGS = frozenset({"LN003", "LN004", "LN010", "LN011"})
"""Lint rules of which a warning already is a doubt: they make figures too good."""


@dataclass(frozen=True)
class Doubt:
    """A reason to believe a run less.

    code: its kind, such as "leak". fragments: the sentence. evidence: the id of the report's section that shows it.
    remedy: what to do about it, a sentence.
    """

    code: str
    weight: DoubtWeight
    fragments: Fragments
    evidence: str
    remedy: str

    @property
    def text(self) -> str:
        """The sentence as plain text."""
        return plain_text(self.fragments)


def leak_doubts(leaks: Mapping[str, Any], split: str) -> Iterator[Doubt]:
    """Yield doubts about images on two sides, and copies with two labels. leaks: as the split's check returns them.

    split: the one that is judged; only its own leaks can make its figures too good, and so refuse.
    """
    remedy = "Split again by lesion and patient (`dermkit split`) and train again."
    if total := leaks.get("total", 0):
        n = leaks.get("n", 0)
        yield Doubt(
            "leak", _leak_weight(total, n, is_judged=split == "test"),
            (f"{total} of {n or '?'} test images show a lesion, or are a copy, that the net was trained on.",),
            "data", remedy,
        )  # fmt: skip
    validation = leaks.get("validation") or {}
    if total := validation.get("total", 0):
        yield Doubt(
            "leak_validation", _leak_weight(total, validation.get("n", 0), is_judged=split == "validation"),
            (f"{total} validation images show a lesion, or are a copy, of a training image: settings were chosen on "
             "them.",), "data", remedy,
        )  # fmt: skip
    if n := leaks.get("contradictions", 0):
        yield Doubt(
            "contradictions", "care", (f"{n} images have an exact copy with another label.",), "data",
            "Clean the data set: `dermkit audit DATASET --clean`.",
        )  # fmt: skip


def _leak_weight(total: int, n: int, *, is_judged: bool) -> DoubtWeight:
    return "refuse" if is_judged and (not n or total / n >= LEAK_SHARE) else "care"


def audit_doubts(run_json: Mapping[str, Any], n_test: int) -> Iterator[Doubt]:
    """Yield doubts from the audits of the data set, and of the one that an external model was trained on.

    Copies on two sides of a data set are no leak of an external test: none of its images was trained on.
    """
    is_external = bool(run_json.get("mapping"))
    for dataset in (run_json.get("dataset") or {}, run_json.get("training_dataset") or {}):
        audit = dataset.get("audit") or {}
        states = (("errors", ""), ("accepted", ", accepted and not repaired"), ("warnings", ""))
        for kind, state in states:
            for finding in audit.get(kind, ()):
                is_heard = finding["code"] in SHORTCUT_CODES if kind == "warnings" else True
                if is_heard and not (is_external and finding["code"] in LEAK_CODES):
                    yield _audit_doubt(finding, state, n_test)


def _audit_doubt(finding: Mapping[str, Any], state: str, n_test: int) -> Doubt:
    is_leak = finding["code"] in LEAK_CODES
    weight: DoubtWeight = "refuse" if is_leak and finding["n"] >= LEAK_SHARE * max(1, n_test) else "care"
    code = "leak" if is_leak else "shortcut" if finding["code"] in SHORTCUT_CODES else "audit"
    title = str(finding["title"]).rstrip(".")
    sentence = f"The data's audit found{state}: {title[:1].lower()}{title[1:]} ({finding['n']} images)."
    if finding.get("effect"):
        sentence = f"{sentence} {finding['effect']}"
    remedy = (
        f"Read {finding['code']} on the audit's page and clean the data set (`dermkit audit DATASET --clean`)."
    )
    return Doubt(code, weight, (sentence,), "warnings", remedy)


def lint_doubts(rows: Sequence[Mapping[str, Any]] | None) -> Iterator[Doubt]:
    """Yield doubts from the rows of lint.json; None: it was never linted."""
    for row in rows or ():
        if row["severity"] == "error" or (row["severity"] == "warning" and row["code"] in LINT_WARNINGS):
            remedy = str(row.get("remedy", "look at the checks below"))
            yield Doubt(
                "lint", "refuse" if row["severity"] == "error" else "care", (str(row.get("sentence", row["code"])),),
                "lint", f"{remedy[:1].upper()}{remedy[1:]}.",
            )  # fmt: skip


def calibration_doubts(split_metrics: Mapping[str, Any], split: str) -> Iterator[Doubt]:
    """Yield a doubt where the probabilities that the model states are clearly wrong; calibrated ones where it has them.

    The intervals of slope and intercept must lie wholly beyond `SLOPE_RANGE` and `INTERCEPT_LIMIT`.
    """
    calibrated = ((split_metrics.get("policy") or {}).get("calibrated") or {}).get("metrics") or {}
    kept = "calibration_slope" in calibrated
    estimates = calibrated if kept else split_metrics["metrics"]
    key = f"{split}.policy.calibrated.metrics" if kept else split
    slope, intercept = (estimates.get(f"calibration_{name}") or {} for name in ("slope", "intercept"))
    if has_reliable_interval(slope):
        low, high = slope["ci95"]
        if high < SLOPE_RANGE[0] or low > SLOPE_RANGE[1]:
            words = "too sure" if high < SLOPE_RANGE[0] else "not sure enough"
            yield _calibration_doubt(f"are {words}", "slope", "1 is right", slope, key)
    if has_reliable_interval(intercept):
        low, high = intercept["ci95"]
        if high < -INTERCEPT_LIMIT or low > INTERCEPT_LIMIT:
            words = "are too high" if high < 0 else "are too low"
            yield _calibration_doubt(words, "intercept", "0 is right", intercept, key)


def _calibration_doubt(words: str, name: str, right: str, estimate: Mapping[str, Any], key: str) -> Doubt:
    low, high = estimate["ci95"]
    place = f"{key}.calibration_{name}"
    fragments: Fragments = (
        f"Its probabilities of malignant {words}: calibration {name} ",
        Figure(estimate["value"], f"{place}.value", "number"), " (95 % interval ",
        Figure(low, f"{place}.ci95.0", "number"), " to ", Figure(high, f"{place}.ci95.1", "number"), f"; {right}).",
    )  # fmt: skip
    return Doubt(
        "calibration", "care", fragments, "performance",
        "Use its ranking, not its probabilities, or calibrate it on images like those it will see.",
    )  # fmt: skip


def has_reliable_interval(estimate: Mapping[str, Any]) -> bool:
    """Tell whether a test may rest on an estimate's interval."""
    return bool(estimate.get("ci95")) and reliability(estimate) == ""


# Groups of people -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GroupRate:
    """A rate of a group of people: sensitivity, specificity, or accuracy where no class is malignant."""

    attribute: str
    group: str
    metric: str
    key: str
    estimate: Mapping[str, Any]
    z: float
    difference: float


def group_doubts(split_metrics: Mapping[str, Any], split: str) -> Iterator[Doubt]:
    """Yield the group that is clearly served worse than the others, the worst first of each attribute.

    Each group is compared with all other images; the least chance is multiplied by the number of comparisons.
    """
    rates = list(_group_rates(split_metrics, split))
    failing = [
        rate
        for rate in rates
        if rate.difference <= -GROUP_DIFFERENCE and len(rates) * _tail(rate.z) <= GROUP_ALPHA
    ]
    worst: dict[str, _GroupRate] = {}
    for rate in sorted(failing, key=lambda rate: rate.z):
        worst.setdefault(rate.attribute, rate)
    for rate in worst.values():
        yield _group_doubt(rate, split_metrics["metrics"][rate.metric], split)


def _group_rates(split_metrics: Mapping[str, Any], split: str) -> Iterator[_GroupRate]:
    overall = split_metrics["metrics"]
    has_two_sides = all(
        (overall.get(name) or {}).get("value") is not None for name in ("sensitivity", "specificity")
    )
    for attribute, body in (split_metrics.get("subgroups") or {}).items():
        for number, group in enumerate(body["groups"]):
            for metric in ("sensitivity", "specificity") if has_two_sides else ("accuracy",):
                estimate, whole = group["metrics"].get(metric) or {}, overall.get(metric) or {}
                if group["name"] == "unknown" or not _are_comparable(estimate, whole):
                    continue
                key = f"{split}.subgroups.{attribute}.groups.{number}.metrics.{metric}"
                z, difference = _against_others(estimate, whole)
                yield _GroupRate(attribute, group["name"], metric, key, estimate, z, difference)


def _are_comparable(estimate: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    has_values = all(one.get("value") is not None and one.get("ci95") for one in (estimate, whole))
    return has_values and estimate["n"] >= GROUP_MIN and whole["n"] - estimate["n"] >= GROUP_MIN


def _against_others(estimate: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[float, float]:
    """Return z and the difference of a group's rate from that of all other images; spreads are those of intervals."""
    n, n_others = estimate["n"], whole["n"] - estimate["n"]
    others = (whole["value"] * whole["n"] - estimate["value"] * n) / n_others
    own_error = (estimate["ci95"][1] - estimate["ci95"][0]) / 3.92
    others_error = (whole["ci95"][1] - whole["ci95"][0]) / 3.92 * math.sqrt(whole["n"] / n_others)
    error = math.hypot(own_error, others_error)
    difference = estimate["value"] - others
    return (difference / error if error else 0.0), difference


def _tail(z: float) -> float:
    """Return the two-sided chance of a normal deviate."""
    return math.erfc(abs(z) / math.sqrt(2))


def _group_doubt(rate: _GroupRate, whole: Mapping[str, Any], split: str) -> Doubt:
    words = {
        "sensitivity": ("it finds ", " of the malignant images"), "specificity": ("it clears ", " of the other images"),
        "accuracy": ("it is right on ", " of the images"),
    }[rate.metric]  # fmt: skip
    low, high = rate.estimate["ci95"]
    fragments: Fragments = (
        f"It fails a group: for {rate.attribute.replace('_', ' ')} {rate.group} {words[0]}",
        Figure(rate.estimate["value"], f"{rate.key}.value"), " (", Figure(low, f"{rate.key}.ci95.0"), " to ",
        Figure(high, f"{rate.key}.ci95.1"), f"){words[1]} (n = ", Figure(rate.estimate["n"], f"{rate.key}.n", "count"),
        "), over all groups ", Figure(whole["value"], f"{split}.{rate.metric}.value"), ".",
    )  # fmt: skip
    return Doubt(
        "group", "care", fragments, "groups",
        f"Do not use it for {rate.attribute.replace('_', ' ')} {rate.group}; gather more such images and train again.",
    )  # fmt: skip


# The test itself --------------------------------------------------------------------------------------------------


def size_doubts(metrics: Mapping[str, Any], split: str) -> Iterator[Doubt]:
    """Yield doubts about classes without images, and about too few independent ones of either outcome."""
    split_metrics, positive = metrics["splits"][split], metrics.get("positive") or ()
    counts = {name: int(row["n"]) for name, row in split_metrics["per_class"].items()}
    more = "Test it on more images: `dermkit evaluate MODEL --on DATASET`."
    if absent := [name for name, n in counts.items() if n == 0]:
        yield Doubt(
            "absent_class", "care", (f"No {split} image of {', '.join(absent)}: nothing is known of it.",), "classes",
            more,
        )  # fmt: skip
    n_malignant = sum(n for name, n in counts.items() if name in positive)
    n_other = sum(counts.values()) - n_malignant
    n_groups = int(split_metrics.get("n_groups", split_metrics["n"]))
    has_both_sides = 0 < len(positive) < len(counts)
    if has_both_sides and not (n_malignant and n_other):
        return  # classes without images, said above
    is_side_small = has_both_sides and min(n_malignant, n_other) < MIN_OUTCOME_IMAGES
    if is_side_small or n_groups < 2 * MIN_OUTCOME_IMAGES:
        images = f"{n_malignant} malignant and {n_other} others" if has_both_sides else f"{n_malignant + n_other}"
        lesions = f" of {n_groups} lesions or patients" if n_groups < split_metrics["n"] else ""
        yield Doubt(
            "few_images", "care", (f"Too few {split} images to be sure: {images}{lesions}.",), "results", more,
        )  # fmt: skip


def independence_doubts(
    split: str, seal: Mapping[str, Any], *, seen_split: str, is_test_kept: bool = False
) -> Iterator[Doubt]:
    """Yield doubts about images that had a part in the training, or that were looked at before.

    is_test_kept: there are test images that this run does not score, as those beside folds.
    """
    fresh = "Test it on images that no decision was made with: `dermkit evaluate MODEL --on DATASET`."
    if split in ("train", seen_split):
        yield Doubt("seen", "refuse", ("These figures are of images that the net was trained on.",), "data", fresh)
    elif split == "validation":
        first, remedy = "There is no test", fresh
        if seal:
            first = "The test images are sealed and were not scored"
            remedy = "Once everything is decided, open the test: `dermkit evaluate RUN --open-test DATASET`."
        elif is_test_kept:
            first, remedy = (
                "The test images were not scored",
                "Let the ensemble of all folds score the test images.",
            )
        yield Doubt(
            "no_test", "care", (f"{first}: settings were chosen on the very images that these figures are of.",),
            "results", remedy,
        )  # fmt: skip
    openings = seal.get("openings", ())
    if len(openings) > 1 and seal.get("opening_number") is not None and not differ_in_seed_alone(openings):
        yield Doubt(
            "opened", "care",
            (f"The test images were opened {len(openings)} times; what was decided in between knew them.",), "warnings",
            fresh,
        )  # fmt: skip


def differ_in_seed_alone(openings: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a test side was opened by runs of one recipe, each once: nothing was decided in between."""
    recipes = {(opening["recipe"], str(opening["run"]).split("-s")[0]) for opening in openings}
    return len(recipes) == 1 and len({opening["run"] for opening in openings}) == len(openings)
