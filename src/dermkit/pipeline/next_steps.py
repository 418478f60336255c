"""NEXT_STEPS.txt: the exact commands that go on from a run."""

from pathlib import Path

from dermkit.files import shell_path, write_text
from dermkit.runs.layout import MODEL_FOLDER, NEXT_STEPS_FILE, RECIPE_FILE, SPLIT_FILE

_OPENING_STEP = "Open the sealed test"
"""How that step begins, in runs of every version."""


def remove_opening_step(folder: Path) -> None:
    """Take the opening of the sealed test split out of NEXT_STEPS.txt: done again, it would count again."""
    path = folder / NEXT_STEPS_FILE
    if path.is_file():
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        write_text(path, "\n\n".join(block for block in blocks if not block.startswith(_OPENING_STEP)))


def write_parent_next_steps(folder: Path) -> None:
    """Write the exact next commands of a cross-validation's folder."""
    parent, model = shell_path(folder), shell_path(folder / MODEL_FOLDER)
    text = f"""Research use only. Not a medical device.

Predict new images (files, folders, patterns) with the ensemble of the folds:
  dermkit predict {model} IMAGE... --out predictions

Test the ensemble, which no image of this data set can test, on another data set:
  dermkit evaluate {parent} --on OTHER_DATASET [--map CLASSES.json]

Evaluate and report again from the pooled predictions.csv:
  dermkit evaluate {parent}
  dermkit report {parent}
"""
    write_text(folder / NEXT_STEPS_FILE, text)


def write_next_steps(folder: Path, dataset: Path, weights: Path | None, *, is_sealed: bool = False) -> None:
    """Write the exact next commands. is_sealed: the test images were not scored; a command that opens them is added."""
    run, model = shell_path(folder), shell_path(folder / MODEL_FOLDER)
    recipe, split = shell_path(folder / RECIPE_FILE), shell_path(folder / SPLIT_FILE)
    weights_option = f" --weights {shell_path(weights)}" if weights else ""
    opening = f"""
{_OPENING_STEP} split: once, when recipe, model and thresholds are decided; every opening is counted:
  dermkit evaluate {run} --open-test {shell_path(dataset)}
"""
    text = f"""Research use only. Not a medical device.

Predict new images (files, folders, patterns):
  dermkit predict {model} IMAGE... --out predictions

Test on another data set:
  dermkit evaluate {run} --on OTHER_DATASET [--map CLASSES.json]

Evaluate and report again from predictions.csv:
  dermkit evaluate {run}
  dermkit report {run}
{opening if is_sealed else ""}
Repeat this run exactly (data set: {dataset.name}):
  dermkit train {recipe} DATASET --split {split}{weights_option} --out again
"""
    write_text(folder / NEXT_STEPS_FILE, text)
