"""What a decision of an update says, one sentence a question: for the record, the page and the terminal."""

from collections.abc import Iterator

from dermkit.comparison.promotion import PromotionCheck, PromotionDecision
from dermkit.metrics.stats.estimate import Estimate

_TITLES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity at the operating point",
    "specificity": "specificity at the operating point",
}


def compared_title(metric: str) -> str:
    """Return the name of a figure in words."""
    return _TITLES[metric]


def signed_difference(estimate: Estimate) -> str:
    """Return a difference with its interval and n: `+0.012 [-0.004, +0.028], n = 400`."""
    if estimate.value is None:
        return f"not defined ({estimate.reason}), n = {estimate.n:,}"
    if estimate.ci95 is None:
        return f"{estimate.value:+.3f}, no interval ({estimate.reason}), n = {estimate.n:,}"
    low, high = estimate.ci95
    return f"{estimate.value:+.3f} [{low:+.3f}, {high:+.3f}], n = {estimate.n:,}"


def decision_sentences(decision: PromotionDecision) -> list[str]:
    """Return why a challenger was promoted or refused; of a refusal what speaks against it alone."""
    if decision.is_promoted:
        shown = [check_sentence(check) for check in decision.checks if check.outcome == "not worse"]
        return [*shown, *_open_questions(decision), *_group_counts(decision)]
    return [check_sentence(check) for check in decision.refusals]


def check_sentence(check: PromotionCheck) -> str:
    """Return one question and its answer."""
    where = f"{check.test} test" + (f", {check.attribute} {check.group}" if check.group else "")
    kind = "images" if check.metric != "sensitivity" else "malignant images"
    needed = (
        f"; about {check.images_needed:,} {kind} like these would decide"
        if check.images_needed
        else "; more images would not help if the difference is what it seems"
    )
    endings = {
        "not worse": f"not worse beyond the margin of {check.margin:g}",
        "worse": f"worse beyond the margin of {check.margin:g}",
        "undecided": f"whether it is worse by {check.margin:g} is not decided" + needed,
        "not shown worse": "not shown worse",
        "too few": f"too few to decide: {check.n_units} independent lesions or patients on the rarer side"
        + needed,
        "not asked": "reported, not part of the rule",
    }
    text = signed_difference(check.estimate)
    return f"{where}: {compared_title(check.metric)}, challenger less champion {text}: {endings[check.outcome]}."


def _open_questions(decision: PromotionDecision) -> Iterator[str]:
    """Yield what a promotion does not rest on though a reader may think so."""
    if not any(check.metric == "sensitivity" and not check.group for check in decision.checks):
        yield (
            "sensitivity at an operating point: not asked, since the classes are not malignant and other ones, or the "
            "two models have no point in common."
        )


def _group_counts(decision: PromotionDecision) -> Iterator[str]:
    groups = [check for check in decision.checks if check.group]
    n_decided = sum(check.outcome == "not shown worse" for check in groups)
    if groups:
        yield (
            f"groups: {n_decided} questions about groups asked, none shows harm; {len(groups) - n_decided} of too few "
            "lesions or patients to ask."
        )
    else:
        yield "groups: none, since age, sex, site and skin type of the test images are unknown."
