"""What moves a run's answers, in three lines for its report: read from counterfactuals.json, computed nowhere else."""

from dataclasses import dataclass
from pathlib import Path

from dermkit.runs.answer_doubts import why_counterfactuals_unused
from dermkit.runs.layout import COUNTERFACTUALS, COUNTERFACTUALS_FOLDER, COUNTERFACTUALS_PAGE

_N_LINES = 3


@dataclass(frozen=True)
class CounterfactualLines:
    """worst: up to three sentences, worst first. hidden: what is still answered with parts hidden. link: of the page,
    from the run folder. n_shown: artefacts whose change is beyond chance, of n_artefacts. text: which images these are.
    warning: why the verdict does not use them, "" where it does.
    """

    worst: tuple[str, ...]
    hidden: tuple[str, ...]
    link: str
    n_shown: int
    n_artefacts: int
    text: str
    warning: str


def read_counterfactuals(run: Path, split: str) -> CounterfactualLines | None:
    """Return the lines of a run's counterfactuals; None where there are none, or they are not complete.

    split: the one that the report's verdict is on.
    """
    content = COUNTERFACTUALS.read_optional(run / COUNTERFACTUALS_FOLDER)
    if not content.get("is_complete"):
        return None
    artefacts, reason = content["artefacts"], why_counterfactuals_unused(run, content, split)
    return CounterfactualLines(
        worst=tuple(str(artefact["text"]) for artefact in artefacts[:_N_LINES]),
        hidden=tuple(str(hidden["text"]) for hidden in content["hidden"]),
        link=f"{COUNTERFACTUALS_FOLDER}/{COUNTERFACTUALS_PAGE}",
        n_shown=sum(bool(artefact["is_shown"]) for artefact in artefacts),
        n_artefacts=len(artefacts),
        text=str(content["images"]["text"]),
        warning=f"The verdict does not use these figures: {reason}. Give `dermkit counterfactuals` again."
        if reason
        else "",
    )
