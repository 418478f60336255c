"""What the report of a model's run said of the model: may its answers be believed?"""

from dataclasses import dataclass
from pathlib import Path

from dermkit.runs.layout import VERDICT, run_of_model


@dataclass(frozen=True)
class ModelVerdict:
    """The word of verdict.json (`runs/belief.py`), the split that it was given on, and its first reasons."""

    word: str
    split: str
    reasons: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return word, split and reasons as a text."""
        return " ".join((f"{self.word.capitalize()} (on the {self.split} images).", *self.reasons))


def read_model_verdict(model_folder: Path, *, limit: int = 3) -> ModelVerdict | None:
    """Return the verdict of the run that holds a model folder; None for a model without a report beside it.

    limit: of the reasons. Raises `UsageError` for a file that is broken.
    """
    run = run_of_model(model_folder)
    content = {} if run == model_folder else VERDICT.read_optional(run)
    if not content:
        return None
    reasons = tuple(str(doubt["sentence"]) for doubt in content["doubts"][:limit])
    return ModelVerdict(str(content["verdict"]), str(content["split"]), reasons)
