"""NEXT_STEPS.txt: the exact commands that go on from a run."""

from pathlib import Path

from dermkit.files import shell_path, write_text
from dermkit.models.card import MODEL_JSON, read_card
from dermkit.runs.layout import MODEL_FOLDER, NEXT_STEPS_FILE, RECIPE_FILE, SPLIT_FILE

_OPENING_STEPS = ("Open the sealed test", "Score the test")
"""How that step begins, in runs of every version."""


def remove_opening_step(folder: Path) -> None:
    """Take the opening of the test split out of NEXT_STEPS.txt: done again, it would count again."""
    path = folder / NEXT_STEPS_FILE
    if path.is_file():
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        write_text(path, "\n\n".join(block for block in blocks if not block.startswith(_OPENING_STEPS)))


def write_parent_next_steps(
    folder: Path, *, scores_test: bool = False, opens_in: Path | None = None, is_sealed: bool = True
) -> None:
    """Write the exact next commands of a cross-validation's folder.

    scores_test: whether test images lie beside the folds. opens_in: the data set whose test images are still to be
    scored. is_sealed: whether a seal is why.
    """
    parent, model = shell_path(folder), shell_path(folder / MODEL_FOLDER)
    untested = "" if scores_test else ", which no image of this data set can test,"
    opening = _opening_block(parent, opens_in, is_sealed=is_sealed) if opens_in else ""
    repeat = f"""
Train all folds again, exactly (with the same --weights FILE, if there was one):
  dermkit train {shell_path(folder / RECIPE_FILE)} DATASET --split {shell_path(folder / SPLIT_FILE)} --out again
"""
    text = f"""Research use only. Not a medical device.

Predict new images (files, folders, patterns):
  dermkit predict {model} IMAGE... --out predictions{_metadata_option(folder)}

Open a page in the browser that takes images, and an HTTP API:
  dermkit serve {model}

Test the model{untested} on another data set:
  dermkit evaluate {parent} --on OTHER_DATASET [--map CLASSES.json]

Evaluate and report again from the pooled predictions.csv:
  dermkit evaluate {parent}
  dermkit report {parent}
{opening}{repeat if scores_test else ""}"""
    write_text(folder / NEXT_STEPS_FILE, text)


def _metadata_option(folder: Path) -> str:
    """Return the option that gives a model the metadata that it takes beside the image, "" for any other model.

    The folder of several runs may not hold its model yet, but those of the runs.
    """
    runs = sorted(folder.iterdir()) if folder.is_dir() else []
    models = [folder / MODEL_FOLDER, *(run / MODEL_FOLDER for run in runs)]
    members = [member for model in models if MODEL_JSON.exists(model) for member in read_card(model)["members"]]
    return " --metadata TABLE.csv" if any(member["metadata"] for member in members) else ""


def _opening_block(run: str, dataset: Path, *, is_sealed: bool = True) -> str:
    sealed, unscored = _OPENING_STEPS
    step = f"{sealed} split" if is_sealed else f"{unscored} images"
    return f"""
{step}: once, when recipe, model and thresholds are decided; every opening is counted:
  dermkit evaluate {run} --open-test {shell_path(dataset)}
"""


def write_next_steps(
    folder: Path,
    dataset: Path,
    weights: Path | None,
    *,
    is_sealed: bool = False,
    is_member: bool = False,
    teacher: Path | None = None,
) -> None:
    """Write the exact next commands. is_sealed: the test images were not scored; a command that opens them is added.

    is_member: of the run of a fold beside test images, which is repeated with all folds.
    """
    run, model = shell_path(folder), shell_path(folder / MODEL_FOLDER)
    recipe, split = shell_path(folder / RECIPE_FILE), shell_path(folder / SPLIT_FILE)
    weights_option = f" --weights {shell_path(weights)}" if weights else ""
    teacher_option = f" --teacher {shell_path(teacher)}" if teacher else ""
    repeat = f"""
Repeat this run exactly (data set: {dataset.name}):
  dermkit train {recipe} DATASET --split {split}{weights_option}{teacher_option} --out again
"""
    text = f"""Research use only. Not a medical device.

Predict new images (files, folders, patterns):
  dermkit predict {model} IMAGE... --out predictions{_metadata_option(folder)}

Open a page in the browser that takes images, and an HTTP API:
  dermkit serve {model}

Test on another data set:
  dermkit evaluate {run} --on OTHER_DATASET [--map CLASSES.json]

Evaluate and report again from predictions.csv:
  dermkit evaluate {run}
  dermkit report {run}
{_opening_block(run, dataset) if is_sealed else ""}{"" if is_member else repeat}"""
    write_text(folder / NEXT_STEPS_FILE, text)
