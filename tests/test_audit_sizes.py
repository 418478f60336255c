"""Whether there is enough to learn from and to conclude from; the power of a paired test against a simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from audit_inputs import make_subject
from dermkit.audit.checks.finding import AuditInput, Finding, NotApplicable, Severity, read_check_card
from dermkit.audit.checks.sample_sizes import (
    da030_small_classes,
    da031_class_missing_in_split,
    da032_test_too_small,
    da033_class_contradicted,
)
from dermkit.metrics.stats.power import effective_sample_size, mcnemar_power, minimum_detectable_difference


def sized(counts: dict[tuple[str, str], int], **more: list[str]) -> AuditInput:
    """Return an audit input with so many images of each (class, side)."""
    label, split = zip(*(key for key, n in counts.items() for _ in range(n)), strict=True)
    return make_subject(label, split=split, classes=("nv", "mel"), manifest=more)


BIG = {("nv", "train"): 800, ("mel", "train"): 200, ("nv", "test"): 1600, ("mel", "test"): 400}


def test_small_classes_are_named_with_their_test_images() -> None:
    found = da030_small_classes(sized({**BIG, ("mel", "test"): 29}))
    assert isinstance(found, Finding)
    assert (found.severity, found.n, found.per_class) == (Severity.NOTE, 229, {"mel": 229})
    assert "mel 229 (29 in test)" in found.sentence
    assert found.rows["test"].tolist() == [1600, 29]
    without = da030_small_classes(make_subject(["nv"] * 100 + ["mel"] * 99))
    assert isinstance(without, Finding)
    assert without.per_class == {"mel": 99}
    assert da030_small_classes(sized({**BIG, ("mel", "test"): 30})) is None
    assert da030_small_classes(make_subject(["nv"] * 100 + ["mel"] * 100)) is None


def test_a_side_without_a_class() -> None:
    found = da031_class_missing_in_split(sized({("nv", "train"): 3, ("nv", "test"): 2, ("mel", "train"): 2}))
    assert isinstance(found, Finding)
    assert (found.severity, found.n, found.sentence) == (Severity.NOTE, 2, "test has no mel.")
    assert da031_class_missing_in_split(sized(BIG)) is None
    assert da031_class_missing_in_split(make_subject(["nv"])) == NotApplicable("no split")
    folds = da031_class_missing_in_split(sized({("nv", "fold 0"): 2, ("mel", "fold 0"): 1, ("nv", "fold 1"): 1}))
    assert isinstance(folds, Finding)
    assert folds.figures["missing_classes"] == {"fold 1": ["mel"]}


def test_a_small_test_side_cannot_carry_a_conclusion() -> None:
    found = da032_test_too_small(sized({**BIG, ("nv", "test"): 70, ("mel", "test"): 48}))
    assert isinstance(found, Finding)
    assert (found.severity, found.n) == (Severity.NOTE, 118)
    assert found.figures["accuracy"]["half_width"] == pytest.approx(0.072, abs=0.001)
    assert found.figures["sensitivity"]["images"] == 48
    assert "an accuracy of 80 % has the interval 72 to 86 %" in found.sentence
    assert "on 48 malignant images of 80 %" in found.sentence
    # Beside folds the test images alone are tested on; without any, every image is in its fold.
    folds = {("nv", "fold 0"): 2000, ("mel", "fold 1"): 2000}
    beside = da032_test_too_small(sized({**folds, ("nv", "test"): 70, ("mel", "test"): 48}))
    assert isinstance(beside, Finding) and beside.n == 118
    assert da032_test_too_small(sized(folds)) is None
    assert da032_test_too_small(sized(BIG)) is None
    assert da032_test_too_small(sized({("nv", "train"): 3})) == NotApplicable("no test split")


def test_many_photographs_of_few_lesions_are_few() -> None:
    """2,000 test images that were enough are 40 lesions now."""
    ids = [f"{side}{number % 40}" for side, n in (("t", 1000), ("s", 2000)) for number in range(n)]
    found = da032_test_too_small(sized(BIG, lesion_id=ids))
    assert isinstance(found, Finding)
    assert found.figures["effective_n"] == 40
    assert "worth 40 independent images" in found.sentence


def test_few_malignant_images_are_enough_to_be_told() -> None:
    found = da032_test_too_small(sized({**BIG, ("mel", "test"): 20}))
    assert isinstance(found, Finding)
    assert found.figures["accuracy"]["half_width"] < 0.05
    assert found.figures["sensitivity"]["half_width"] > 0.10


def test_five_images_tell_no_models_apart() -> None:
    found = da032_test_too_small(sized({("nv", "train"): 9, ("nv", "test"): 3, ("mel", "test"): 2}))
    assert isinstance(found, Finding)
    assert "hardly any difference between two models can be shown" in found.sentence


def test_a_class_contradicted_elsewhere() -> None:
    label = ["mel", "mel", "mel", "nv", "nv", "nv", "nv", "nv"]
    split = ["test", "test", "test", "train", "train", "test", "test", "test"]
    pairs = [(0, 3, 0.2), (0, 4, 0.1), (1, 4, 0.0), (2, 1, 0.0), (5, 3, 0.0)]
    found = da033_class_contradicted(make_subject(label, split=split, pairs=pairs))
    assert isinstance(found, Finding)
    assert (found.severity, found.n, found.per_class) == (Severity.ERROR, 2, {"mel": 2})
    assert found.rows["image_id"].tolist() == ["0001", "0000"]
    assert found.rows["duplicate_image_id"].tolist() == ["0004", "0004"]
    assert found.sentence == (
        "Of 3 test images of mel 2 (67 %, 95 % CI 21 to 94 %) have a copy under another label."
    )
    assert da033_class_contradicted(make_subject(label, split=split, pairs=[(1, 4, 0.0)])) is None
    assert da033_class_contradicted(make_subject(label, split=split)) is None
    whole = da033_class_contradicted(make_subject(label, pairs=pairs))
    assert isinstance(whole, Finding)
    assert "Of 3 images of mel 2" in whole.sentence


@pytest.mark.parametrize(
    ("n", "difference", "discordant"), [(16, 0.2, 0.3), (118, 0.1, 0.25), (118, 0.0, 0.3), (1000, 0.04, 0.2)]
)
def test_power_agrees_with_a_simulation(n: int, difference: float, discordant: float) -> None:
    rng = np.random.default_rng(3)
    better, worse = (discordant + difference) / 2, (discordant - difference) / 2
    counts = rng.multinomial(n, [better, worse, 1 - discordant], size=4000)[:, :2]
    pairs, times = np.unique(counts, axis=0, return_counts=True)
    found = [a + b > 0 and binomtest(int(a), int(a + b)).pvalue <= 0.05 for a, b in pairs]
    simulated = times[found].sum() / times.sum()
    assert mcnemar_power(n, difference, discordant) == pytest.approx(simulated, abs=0.025)


def test_the_least_difference_has_the_power_it_is_defined_by() -> None:
    for n, discordant in ((118, 0.25), (1000, 0.2), (100_000, 0.3)):
        least = minimum_detectable_difference(n, discordant)
        assert least is not None
        assert mcnemar_power(n, least, discordant) == pytest.approx(0.8, abs=1e-3)
        # Connor 1987 (Biometrics 43:207), a normal approximation: a little smaller, and equal for many images.
        approximate = (1.95996 * discordant**0.5 + 0.84162 * (discordant - least**2) ** 0.5) / n**0.5
        assert approximate <= least * 1.001
        assert least == pytest.approx(approximate, rel=0.1)
    assert minimum_detectable_difference(16, 0.2) is None
    assert minimum_detectable_difference(0, 0.2) is None


@pytest.mark.parametrize("values", [(0, 0.1, 0.2), (10, 0.3, 0.2), (10, -0.1, 0.2), (10, 0.1, 1.2)])
def test_impossible_power_is_refused(values: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="needs n > 0"):
        mcnemar_power(*values)


def test_effective_size() -> None:
    assert effective_sample_size(np.array([1, 2, 3])) == 3
    assert effective_sample_size(np.array([7, 7, 7, 7])) == 1
    assert effective_sample_size(np.array([1, 1, 2])) == pytest.approx(9 / 5)
    assert effective_sample_size(np.array([], dtype=np.int64)) == 0


def test_cards_can_be_read() -> None:
    checks = (da030_small_classes, da031_class_missing_in_split, da032_test_too_small, da033_class_contradicted)
    assert [read_check_card(check).code for check in checks] == [f"DA03{k}" for k in range(4)]
