"""dermkit: train, compare and serve skin-lesion image classifiers, and say whether to believe them.

Research use only. Not a medical device.

    import dermkit as dk

    dataset = dk.import_dataset("folder", Path("images"), out=Path("dataset")).dataset
    run = dk.train(dk.find_recipe("demo"), dataset, settings=dk.RunSettings(out=Path("runs")))

The names of `__all__` are the public interface, with `dermkit.metrics`, `dermkit.errors` and `dermkit.data.synthetic`;
everything else may change without notice. A name is imported when it is first used, so that `import dermkit` loads
neither torch nor NumPy.

Every error is a `dermkit.errors.DermkitError`. Images are (H, W, 3) uint8 RGB. Wherever a figure or a threshold is
about malignancy, the malignant classes of the data set's class table are the positive class.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dermkit.audit.run import AuditOutcome
    from dermkit.comparison.compare import Comparison, compare_runs
    from dermkit.data.importers.run import ImportOutcome, import_dataset
    from dermkit.data.importers.table_rows import ImportOptions
    from dermkit.data.manifest import Dataset, LesionClass, load_dataset
    from dermkit.data.seal import Seal
    from dermkit.data.split import Split, load_split
    from dermkit.evaluation.options import EvaluationOptions
    from dermkit.explanation.run import ExplainOutcome, explain
    from dermkit.export.run import ExportOutcome, export_model
    from dermkit.images.decode import LesionImage, open_image
    from dermkit.images.preprocess import Preprocessing, resize_pixels
    from dermkit.perturbation.run import CounterfactualOutcome, counterfactuals
    from dermkit.pipeline.auto import train_auto
    from dermkit.pipeline.data import audit_codes, audit_dataset, check_external, find_split_seal, split
    from dermkit.pipeline.dataset_plan import AutoOptions, DatasetPlan, plan
    from dermkit.pipeline.find_lr import RateSearch, find_lr
    from dermkit.pipeline.ladder import ladder
    from dermkit.pipeline.plan import RunSettings
    from dermkit.pipeline.results import CompareOutcome, compare, evaluate, report
    from dermkit.pipeline.train import train
    from dermkit.pipeline.tune import tune
    from dermkit.prediction.image_prediction import ImageDecisions, ImagePrediction
    from dermkit.prediction.load import load_model
    from dermkit.prediction.output import PredictOutcome
    from dermkit.prediction.predictor import Predictor
    from dermkit.prediction.run import predict
    from dermkit.progress import Progress
    from dermkit.recipes.augmentation import AugmentSpec, find_preset
    from dermkit.recipes.experiments import RECIPES, find_grid, find_recipe, full_phase, head_phase, make_grid
    from dermkit.recipes.schema import Recipe, SplitSpec, load_recipe, save_recipe
    from dermkit.recipes.training_specs import Phase
    from dermkit.render.sheets import Tile, contact_sheet
    from dermkit.runs.folder import read_metrics
    from dermkit.training.augment.batch import augment_image

__version__ = "0.1.0"

_NAMES = {
    "audit.run": "AuditOutcome",
    "comparison.compare": "Comparison compare_runs",
    "data.importers.run": "ImportOutcome import_dataset",
    "data.importers.table_rows": "ImportOptions",
    "data.manifest": "Dataset LesionClass load_dataset",
    "data.seal": "Seal",
    "data.split": "Split load_split",
    "evaluation.options": "EvaluationOptions",
    "explanation.run": "ExplainOutcome explain",
    "export.run": "ExportOutcome export_model",
    "images.decode": "LesionImage open_image",
    "images.preprocess": "Preprocessing resize_pixels",
    "perturbation.run": "CounterfactualOutcome counterfactuals",
    "pipeline.auto": "train_auto",
    "pipeline.data": "audit_codes audit_dataset check_external find_split_seal split",
    "pipeline.dataset_plan": "AutoOptions DatasetPlan plan",
    "pipeline.find_lr": "RateSearch find_lr",
    "pipeline.ladder": "ladder",
    "pipeline.plan": "RunSettings",
    "pipeline.results": "CompareOutcome compare evaluate report",
    "pipeline.train": "train",
    "pipeline.tune": "tune",
    "prediction.image_prediction": "ImageDecisions ImagePrediction",
    "prediction.load": "load_model",
    "prediction.output": "PredictOutcome",
    "prediction.predictor": "Predictor",
    "prediction.run": "predict",
    "progress": "Progress",
    "recipes.augmentation": "AugmentSpec find_preset",
    "recipes.experiments": "RECIPES find_grid find_recipe full_phase head_phase make_grid",
    "recipes.schema": "Recipe SplitSpec load_recipe save_recipe",
    "recipes.training_specs": "Phase",
    "render.sheets": "Tile contact_sheet",
    "runs.folder": "read_metrics",
    "training.augment.batch": "augment_image",
}
"""Module -> the public names that it defines; the block above says the same to type checkers, and a test compares."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "RECIPES", "AuditOutcome", "AugmentSpec", "AutoOptions", "CompareOutcome", "Comparison",
    "CounterfactualOutcome", "Dataset", "DatasetPlan", "EvaluationOptions", "ExplainOutcome", "ExportOutcome",
    "ImageDecisions", "ImagePrediction", "ImportOptions", "ImportOutcome", "LesionClass", "LesionImage", "Phase",
    "PredictOutcome", "Predictor", "Preprocessing", "Progress", "RateSearch", "Recipe", "RunSettings", "Seal", "Split",
    "SplitSpec", "Tile",
    "audit_codes", "audit_dataset", "augment_image", "check_external", "compare", "compare_runs", "contact_sheet",
    "counterfactuals", "evaluate", "explain", "export_model", "find_grid", "find_lr", "find_preset", "find_recipe",
    "find_split_seal", "full_phase", "head_phase", "import_dataset", "ladder", "load_dataset", "load_model",
    "load_recipe", "load_split", "make_grid", "open_image", "plan", "predict", "read_metrics", "report",
    "resize_pixels", "save_recipe", "split", "train", "train_auto", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'dermkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dermkit.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*__all__, "__version__"})
