"""What was changed and how answers moved, in plain words."""

from dataclasses import dataclass

from dermkit.metrics.stats.estimate import Estimate, caveats, reliability
from dermkit.perturbation.changes import ALPHA, AnswerChange


@dataclass(frozen=True)
class Wording:
    """How the sentences call things. probability: whose change is measured. has_units: lesions or patients are known.
    point: the operating point, "" without one.
    """

    probability: str
    n_images: int
    n_units: int
    has_units: bool
    point: str

    @property
    def n_text(self) -> str:
        """Return the number of images and, where they are known, of lesions."""
        if not self.has_units:
            return f"n = {self.n_images:,} images"
        if self.n_units == self.n_images:
            return f"n = {self.n_images:,} lesions"
        return f"n = {self.n_images:,} images in {self.n_units:,} groups of one lesion, patient or copies"


def signed(value: float) -> str:
    """Return a difference of probabilities for people, such as +.12."""
    text = f"{value:+.2f}"
    text = text.replace("-0.00", "0.00").replace("+0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _interval_text(ci95: tuple[float, float] | None) -> str:
    """Return an interval of a difference for people, such as [.08, .16]."""
    if ci95 is None:
        return ""
    return f"[{', '.join(signed(bound).removeprefix('+') for bound in ci95)}]"


def difference_text(estimate: Estimate) -> str:
    """Return a difference with its interval and a mark where that is unreliable; "not applicable" with the reason."""
    if estimate.value is None:
        return "not applicable"
    grade = reliability(estimate.as_dict())
    if grade == "none":
        return signed(estimate.value)
    return f"{signed(estimate.value)} {_interval_text(estimate.ci95)}{'*' if grade == 'doubtful' else ''}"


def needs_footnote(estimate: Estimate) -> bool:
    """Return whether an interval carries the mark of an unreliable one."""
    return reliability(estimate.as_dict()) == "doubtful" and bool(caveats(estimate.reason))


def artefact_sentence(title: str, change: AnswerChange, wording: Wording, *, strength: float = 1.0) -> str:
    """Return what an artefact does to decisions and to the mean probability at one strength, with n and intervals."""
    dose = "" if strength >= 1 else f" at strength {strength:.2f}"
    shown = "" if change.is_shown else ", which is not shown beyond chance"
    mean = f"{wording.probability} moves by {difference_text(change.score)} on average{shown}"
    return f"{title}{dose} changes {decisions_text(change, wording)}. {mean}."


def decisions_text(change: AnswerChange, wording: Wording) -> str:
    """Return how many decisions change, of how many, to which side; without an operating point how many labels do."""
    n_images = f"{wording.n_images:,}"
    if change.n_to_positive is None or not wording.point:
        return f"{change.n_label_changes} of {n_images} labels"
    return (
        f"{change.n_decisions} of {n_images} decisions ({wording.point}): {change.n_to_positive} become positive, "
        f"{change.n_to_negative} negative"
    )


def control_sentence(largest_change: float) -> str:
    """Return what the control shows: the unchanged image on the path of the changed ones."""
    if largest_change == 0:
        return (
            "Control: unchanged images that are processed like the changed ones keep their probabilities exactly "
            "(change 0.0)."
        )
    return (
        "Control failed: an unchanged image that is processed like the changed ones moves by up to "
        f"{largest_change:.2g}; smaller changes mean nothing."
    )


def multiplicity_sentence(n_tests: int) -> str:
    """Return how the number of artefacts is taken into account."""
    return (
        f"{n_tests} changes were tested (each artefact at each strength; sign-flip test over lesions or patients, "
        f"Holm's correction): a change counts as shown where the corrected p is at most {ALPHA:g}. Each interval is a "
        f"95 % one by itself: of {n_tests} about {round(n_tests * 0.05)} would miss by chance."
    )


def hidden_sentence(
    hidden: str, original: Estimate, remaining: Estimate, change: AnswerChange, wording: Wording, measure: str
) -> str:
    """Return whether the net still answers with a part of the image hidden. measure: AUROC or accuracy."""
    labels = f"{change.n_label_changes} of {wording.n_images:,} labels change"
    start = f"With the {hidden} hidden {labels}"
    if remaining.value is None or original.value is None:
        return f"{start}; {measure} {remaining.reason}."
    figures = f"{measure} is {_plain(remaining)}, against {_plain(original)} of the whole image"
    if measure != "AUROC" or remaining.ci95 is None:
        return f"{start}; {figures}."
    if hidden == "lesion":
        verdict = (
            "The net still tells malignant from other images without seeing the lesion: something beside it, or the "
            "outline that is left, gives the class away"
            if remaining.ci95[0] > 0.5
            else "Without the lesion the net is not shown to be better than a coin, as it should be"
        )
    else:
        verdict = (
            "The lesion alone is enough for better than a coin"
            if remaining.ci95[0] > 0.5
            else "The lesion alone is not shown to be enough: the net leans on what surrounds it, or on the picture as "
            "a whole"
        )
    return f"{start}; {figures}. {verdict}."


def _plain(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    text = f"{estimate.value:.2f}".replace("0.", ".", 1) if estimate.value < 1 else "1.00"
    if estimate.ci95 is None:
        return text
    return f"{text} [{', '.join(f'{bound:.2f}'.replace('0.', '.', 1) for bound in estimate.ci95)}]"
