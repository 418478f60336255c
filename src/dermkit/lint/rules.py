"""The lint rules as a table, their findings, and lint.json."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from dermkit.errors import DataError
from dermkit.files import JsonFile

LINT = JsonFile("lint.json", 1)
"""What the lint found in a run, in the run's folder."""

LintSeverity = Literal["error", "warning", "note"]
"""error: metrics are wrong. warning: metrics are worse than necessary, or too good. note: for information."""

LINT_SEVERITY_ORDER: tuple[LintSeverity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class LintRule:
    """A rule: title, threshold, effect and remedy."""

    title: str
    threshold: str
    effect: str
    remedy: str


LINT_RULES: Mapping[str, LintRule] = MappingProxyType(
    {
        "LN001": LintRule(
            "Pixels scaled otherwise than the weights were trained with",
            "a pixel reaches the net more than 0.25 standard deviations away from where its weights expect it; "
            "a warning where the backbone is frozen in any phase, a note where all of it learns",
            "A frozen backbone sees pictures that it has never seen: its features, and all figures, are worse.",
            'set image.normalise to "weights" in the recipe',
        ),
        "LN002": LintRule(
            "Batch norm moves in a frozen net",
            "one batch-norm layer updates its statistics while its own weights are frozen (warning), or learns in the "
            "last layer groups alone (note)",
            "The frozen features drift from batch to batch, and differ between training and testing.",
            "set freeze_batch_norm to true in that phase",
        ),
        "LN003": LintRule(
            "Validation and test hold the same images",
            "one image by its id or its exact pixels, or more than half of the validation rows with the very "
            "probabilities of a test row; an error from half of the test images on, else a warning",
            "The best epoch and every setting were chosen on test images: the test figures are too good.",
            "split again with `dermkit split`, which keeps identical pixels on one side",
        ),
        "LN004": LintRule(
            "Augmented or renamed copies of an image on two sides",
            "3 images whose file names say that they are made from an image of another side, or that share its ISIC "
            "id but not its pixels",
            "Augmented or grown before the split, the test shows what was learned: validation 77 %, test 43 % in a "
            "published case.",
            "split the originals first, and augment the training side alone (recipe fields augment and grow)",
        ),
        "LN005": LintRule(
            "Pictures squashed into a square",
            "resize is squash and the median image is stretched by more than 1.1 (note); a warning where the images' "
            "shapes differ by more than 1.2 between the 5th and 95th of 100, since each is then stretched otherwise",
            "Round lesions become oval, and where a class has its own picture shape, the stretch tells the class.",
            'use image.resize "crop" or "pad"',
        ),
        "LN006": LintRule(
            "Probability columns in another order than the classes",
            "on half of the images another order of columns is found (or the alphabetical or reversed one is tried), "
            "and on the other half it raises the mean AUROC of the moved classes by at least 0.2, 4 standard errors "
            "above 0, from below 0.55 to above 0.7; a warning where less than half of the classes move in no known "
            "order, since a model may confuse them by itself",
            "Every figure belongs to another class than it says.",
            "name the columns as the model's outputs are ordered",
        ),
        "LN007": LintRule(
            "No probabilities",
            "a class without a column, a value outside 0..1 or that is no number, or a row whose sum is off 1 by more "
            "than 0.001 and than rounding can bring about",
            "Logits, percentages or one-against-rest scores are no probabilities: loss, calibration and thresholds "
            "mean nothing, and the most probable class may be another one.",
            "apply softmax to the model's outputs before they are written",
        ),
        "LN008": LintRule(
            "One image predicted more than once",
            "one image that stands twice under the same split, fold and seed",
            "Repeated images count twice: intervals are too narrow, and the figures lean on them.",
            "keep one row per image, or tell repeats apart by fold and seed",
        ),
        "LN009": LintRule(
            "Predictions and split do not match",
            "one image predicted on a side that it is not on, or one image of the side without a prediction",
            "The figures are those of another set of images than the one they are published for.",
            "predict every image of the split, and no other",
        ),
        "LN010": LintRule(
            "Too good for data of this kind",
            "accuracy or balanced accuracy above 0.92 on at least 50 test images of at least five of the seven "
            "diagnoses of HAM10000; a warning, or a note where an audit found no leak",
            "Split by lesion, the honest range of balanced accuracy is .70 to .80: a leak is likelier than a better "
            "net.",
            "run `dermkit audit`, and split by lesion and patient",
        ),
        "LN011": LintRule(
            "Saturated probabilities",
            "the most probable class has 1 (within 0.000001) in more than half of the rows; a warning where all values "
            "are 0 or 1",
            "Decisions without doubt carry no ranking: AUROC, calibration and thresholds say nothing, and one mistake "
            "makes the loss infinite.",
            "write the probabilities in full precision, and calibrate them on validation",
        ),
        "LN012": LintRule(
            "The predicted class is not the most probable one",
            "one row",
            "Figures from decisions and figures from probabilities are those of two different models.",
            "write the class of the largest probability, or leave the decision to `dermkit evaluate`",
        ),
        "LN013": LintRule(
            "The same answer for every image",
            "no probability varies by more than 0.000001 over at least 10 images",
            "The net does not look: it is dead, or its pixels are scaled out of its range.",
            "look at the scaling of the pixels and at the learning rate",
        ),
        "LN014": LintRule(
            "Labels are not those of the data set",
            "one image whose label differs from the manifest's",
            "The figures compare with other truths than the data set's.",
            "take the labels from the manifest, joined by image id",
        ),
    }
)
"""Code -> rule. The severity is error unless the threshold names another."""


@dataclass(frozen=True)
class LintFinding:
    """A finding of a rule. n: images, rows or layers affected."""

    code: str
    severity: LintSeverity
    sentence: str
    n: int

    @property
    def rule(self) -> LintRule:
        """Its rule."""
        return LINT_RULES[self.code]


def shared_images_finding(n: int, total: int) -> LintFinding | None:
    """Return LN003 for `n` of `total` test images that are validation images too; None for n = 0."""
    if not n:
        return None
    return LintFinding(
        "LN003",
        "error" if 2 * n >= total else "warning",
        f"{n:,} of {total:,} test images are validation images too: what was chosen on validation was chosen on them.",
        n,
    )


def lint_rows(findings: Iterable[LintFinding]) -> list[dict[str, Any]]:
    """Return findings as rows, worst first: code, severity, title, sentence, n, effect, remedy."""
    return _worst_first(
        {
            **asdict(finding),
            "title": finding.rule.title,
            "effect": finding.rule.effect,
            "remedy": finding.rule.remedy,
        }
        for finding in findings
    )


def _worst_first(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (LINT_SEVERITY_ORDER.index(row["severity"]), row["code"]))


def write_lint(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of `lint_rows`, of the training and of the predictions, as `lint.json` of a run folder."""
    LINT.write(folder, {"lint": _worst_first(rows)})


def read_lint(folder: Path) -> list[dict[str, Any]] | None:
    """Return the rows of a run's `lint.json`, None where it was never linted; raises `DataError` if it is broken."""
    if not LINT.exists(folder):
        return None
    rows = LINT.read(folder).get("lint")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"severity", "code"} <= row.keys() for row in rows
    ):
        raise DataError(f"{folder / LINT.name}: holds no list of findings", remedy="run `dermkit evaluate` again")
    return list(rows or [])
