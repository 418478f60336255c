"""The files of a run folder, of repeats and of an evaluation: their names, and the formats of those that are JSON.

A file's name stands here once. `LOCATION` is written beside a data set too (data/manifest.py).
"""

from pathlib import Path

from dermkit.data.manifest import LOCATION as LOCATION
from dermkit.files import JsonFile
from dermkit.runs import migrations

RUN = JsonFile("run.json", 2, {1: migrations.run_1_to_2})
METRICS = JsonFile(
    "metrics.json", 4,
    {1: migrations.metrics_1_to_2, 2: migrations.metrics_2_to_3, 3: migrations.metrics_3_to_4},
)  # fmt: skip
POLICY = JsonFile("policy.json", 2)
RUN_SEAL = JsonFile("seal.json", 2, {1: migrations.run_seal_1_to_2})
ENVIRONMENT = JsonFile("environment.json", 1)
SUMMARY = JsonFile("summary.json", 3, {1: migrations.summary_1_to_2, 2: migrations.summary_2_to_3})
ENSEMBLE_TEST = JsonFile("ensemble_test.json", 1)
"""Which nets the ensemble had that scored the test rows of predictions.csv; written last, when these are there."""
VIEW_CHOICE = JsonFile("view_choice.json", 1)
"""What each set of test-time views gave on validation images, and which one the model and its predictions have."""
SAVED_TARGETS = JsonFile("saved_targets.json", 1)
"""Targets that a person saved in a model that is being written anew; it is there until the new model holds them."""
FOREIGN = JsonFile("foreign_predictions.json", 2)
TUNE = JsonFile("tune.json", 2)
STUDY = JsonFile("study.json", 1)
IMAGE_BLIND = JsonFile("image_blind_rules.json", 1)
"""Image-blind rules: `rules`, name -> classifier and n_train; `not_applicable`, name -> why there is none."""
VERDICT = JsonFile("verdict.json", 1)
"""The word on a run's figures (believe, believe with care, do not believe) and the doubts that it rests on."""
OUT_OF_DISTRIBUTION = JsonFile("out_of_distribution.json", 1)
"""How the model tells foreign images: `reason` why it cannot ("" where it can), `method`, `max_false_alarm_rate`,
`n_validation_groups`, and `splits`, name -> `n`, `n_outside` and `false_alarm_rate`, an estimate."""
AUTO = JsonFile("auto.json", 2, {1: migrations.auto_1_to_2})
"""What `train auto` planned and why, how long its recipes took, and which one it chose."""

LADDER = JsonFile("ladder.json", 1)
"""What `ladder` measured: the rungs, their figures, and the differences between them."""
UPDATE = JsonFile("promotion.json", 1)
"""Whether an update promoted its challenger: the rule, `checks`, every question with its figure, and `sentences`."""
COUNTERFACTUALS = JsonFile(
    "counterfactuals.json", 3, {1: migrations.counterfactuals_1_to_2, 2: migrations.counterfactuals_2_to_3}
)
"""How the answers change with artefacts on the images, worst first; `is_complete` is false until all is written."""
HEAT_MAPS = JsonFile("heat_maps.json", 1)
"""Heat maps of a run's own mistakes and best hits: `split`, `key` of the answers that they are of, `is_complete`,
`reason` why there are none ("" where there are some), and what a reader has to know of them."""

OLD_POLICY_FILE = "decision.json"
"""What policy.json was called; an evaluation removes it."""
OLD_FOREIGN_FILE = "brought.json"
"""What foreign_predictions.json was called; a folder that holds it may be evaluated again."""
OLD_COLOUR_FILES = ("colour_baseline.csv", "colour_rule.csv")
"""Where runs had the rule of mean colour before other image-blind rules; read where there is no table of rules."""

RECIPE_FILE = "recipe.json"
SPLIT_FILE = "split.csv"
LOG_FILE = "log.csv"
EXCLUDED_FILE = "excluded.csv"
PREDICTIONS_FILE = "predictions.csv"
IMAGE_BLIND_FILE = "image_blind_rules.csv"
"""predictions.csv of each image-blind rule, one below the other, after a column `rule`."""
DISTANCES_FILE = "out_of_distribution.csv"
"""Distance of each scored image from the training images, and its p value."""
GROUPS_FILE = "groups.csv"
ATTRIBUTES_FILE = "attributes.csv"
UNMAPPED_FILE = "unmapped.csv"
NEXT_STEPS_FILE = "NEXT_STEPS.txt"
REPORT_FILE = "report.html"
PROGRESS_CHART = "progress.png"
AUGMENTED_SHEET = "augmented.png"
SUMMARY_TABLE = "summary.csv"
TUNE_TABLE = "tune.csv"
ENSEMBLE_TABLE = "ensemble.csv"
"""How good each way to weigh the models of an ensemble is."""
TUNE_PAGE = "tune.html"
HISTORY_TABLE = "history.csv"
IMPORTANCE_TABLE = "importance.csv"
LEADERBOARD_TABLE = "leaderboard.csv"
AUTO_PAGE = "auto.html"
METHODS_FILE = "METHODS.md"
DATASHEET_FILE = "DATASHEET.md"
CHECKLISTS_FILE = "CHECKLISTS.md"
LADDER_TABLE = "ladder.csv"
LADDER_PAGE = "ladder.html"
UPDATE_PAGE = "promotion.html"
CHAMPION_TABLE = "champion.csv"
CHALLENGER_TABLE = "challenger.csv"
"""The answers of each model to the tests of an update, with the columns of predictions.csv."""
COUNTERFACTUALS_PAGE = "counterfactuals.html"
HEAT_MAPS_TABLE = "heat_maps.csv"
"""A row for each image that has a heat map: what it is, its answer, and the names of its pictures."""

MODEL_FOLDER = "model"
EXTERNAL_FOLDER = "external"
"""Evaluations of the run's model on other data sets."""
COUNTERFACTUALS_FOLDER = "counterfactuals"
"""What `dermkit counterfactuals` writes of a run."""
HEAT_MAPS_FOLDER = "heat_maps"
"""Heat maps of a run's own mistakes and best hits, with their pictures."""
TRIALS_FOLDER = "trials"
"""The runs of a grid, beside its tune.json."""
RUNGS_FOLDER = "rungs"
"""The runs of a leak ladder, a folder for each of its splits."""
FIGURES_FOLDER = "figures"
CHECKPOINTS_FOLDER = "checkpoints"

MALIGNANT_CURVE = "malignant classes"
"""The name of the curve and of the row that take all malignant classes together, against the rest."""
UNSTABLE_TRAINING = "Training was not stable"
"""How the warning of unstable training begins; a report takes it for serious."""
RUNG_WARNING = "A rung of a leak ladder"
"""How the warning begins that each run of a leak ladder carries; a report takes it for serious."""


def run_of_model(folder: Path) -> Path:
    """Return the folder that a model folder lies in, any other folder as it is.

    `.` and links are followed: what a folder is called here need not be its name.
    """
    if folder.name == MODEL_FOLDER and not folder.is_symlink():
        return folder.parent
    real_folder = folder.resolve()
    return real_folder.parent if real_folder.name == MODEL_FOLDER else folder
