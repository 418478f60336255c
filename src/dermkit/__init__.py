"""dermkit: train, compare and serve skin-lesion image classifiers, and say whether to believe them.

Research use only. Not a medical device.

    import dermkit as dk

    dataset = dk.import_dataset("folder", Path("images"), out=Path("dataset")).dataset
    run = dk.train(dk.find_recipe("demo"), dataset, settings=dk.RunSettings(out=Path("runs")))

The names below are the public interface; everything else may move without notice. A name is imported when it is first
used, so that `import dermkit` costs no torch.
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
    from dermkit.pipeline.data import audit_codes, audit_dataset, check_external, find_split_seal, split
    from dermkit.pipeline.plan import RunSettings
    from dermkit.pipeline.results import CompareOutcome, compare, evaluate, report
    from dermkit.pipeline.train import train
    from dermkit.pipeline.tune import tune
    from dermkit.prediction.predictor import Predictor, load_model
    from dermkit.prediction.run import PredictOutcome, predict
    from dermkit.progress import Progress
    from dermkit.recipes.experiments import RECIPES, find_grid, find_recipe
    from dermkit.recipes.schema import Recipe, SplitSpec, load_recipe, save_recipe

__version__ = "0.1.0"
_MODULES = {
    "audit.run": ("AuditOutcome",),
    "comparison.compare": (
        "Comparison",
        "compare_runs",
    ),
    "data.importers.run": (
        "ImportOutcome",
        "import_dataset",
    ),
    "data.importers.table_rows": ("ImportOptions",),
    "data.manifest": (
        "Dataset",
        "LesionClass",
        "load_dataset",
    ),
    "data.seal": ("Seal",),
    "data.split": (
        "Split",
        "load_split",
    ),
    "evaluation.options": ("EvaluationOptions",),
    "pipeline.data": (
        "audit_codes",
        "audit_dataset",
        "check_external",
        "find_split_seal",
        "split",
    ),
    "pipeline.plan": ("RunSettings",),
    "pipeline.results": (
        "CompareOutcome",
        "compare",
        "evaluate",
        "report",
    ),
    "pipeline.train": ("train",),
    "pipeline.tune": ("tune",),
    "prediction.predictor": (
        "Predictor",
        "load_model",
    ),
    "prediction.run": (
        "PredictOutcome",
        "predict",
    ),
    "progress": ("Progress",),
    "recipes.experiments": (
        "RECIPES",
        "find_grid",
        "find_recipe",
    ),
    "recipes.schema": (
        "Recipe",
        "SplitSpec",
        "load_recipe",
        "save_recipe",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "RECIPES", "AuditOutcome", "CompareOutcome", "Comparison", "Dataset", "EvaluationOptions", "ImportOptions",
    "ImportOutcome", "LesionClass", "PredictOutcome", "Predictor", "Progress", "Recipe", "RunSettings", "Seal",
    "Split", "SplitSpec", "audit_codes", "audit_dataset", "check_external", "compare", "compare_runs",
    "evaluate", "find_grid", "find_recipe", "find_split_seal", "import_dataset", "load_dataset", "load_model",
    "load_recipe", "load_split", "predict", "report", "save_recipe", "split", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'dermkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dermkit.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*__all__, "__version__"})
