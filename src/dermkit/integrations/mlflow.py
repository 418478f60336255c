"""An update in an MLflow tracking store: parameters, figures with their intervals, and the version of the model.

The store that is named gets it and nothing else does: MLflow's own telemetry is off, and no image, no prediction and no
weight is sent. The path of a version's run folder is a tag: as source, a tracking server takes no path of another
machine.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dermkit.errors import OutputError, UsageError
from dermkit.runs.layout import UPDATE
from dermkit.runs.registry import UPDATES_FOLDER, read_registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "dermkit updates"
UPDATE_TAG = "dermkit.update"
SERVING_ALIAS = "serving"


def check_mlflow() -> None:
    """Raise `UsageError` where MLflow is not installed; it is not imported."""
    if find_spec("mlflow") is None:
        raise UsageError(
            "--mlflow needs mlflow, which is not installed",
            outcome="nothing was trained",
            remedy="pip install 'dermkit[mlflow]', or leave out --mlflow",
        )


def log_update(registry: Path, version: str, uri: str) -> str:
    """Write the update of a version to a tracking store, once; returns the id of its MLflow run.

    uri: such as sqlite:///mlflow.db or http://localhost:5000. Raises `UsageError` for a version that no update made or
    without MLflow, `OutputError` where the store does not take it.
    """
    check_mlflow()
    # MLflow reports its use to its makers unless it is told otherwise before it is imported.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    from mlflow import MlflowClient

    key = read_registry(registry).version(version).update
    if not key:
        raise UsageError(
            f"{registry}: {version} was registered, not made by an update", remedy="name another version"
        )
    content = UPDATE.read(registry / UPDATES_FOLDER / key)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        return _log(client, registry, version, key, content)
    except Exception as error:
        problem = f"{uri}: MLflow could not write there: {type(error).__name__}: {str(error)[:300]}"
        raise OutputError(
            _without_password(problem, uri),
            outcome=f"the update itself: {registry}",
            remedy="correct the URI or start the store, then give the same command again",
        ) from error


def _without_password(text: str, uri: str) -> str:
    """Return a text without the password that a URI holds."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        return text.replace(uri, "the store")
    return text.replace(password, "***") if password else text


def _log(client: "MlflowClient", registry: Path, version: str, key: str, content: dict[str, Any]) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
    earlier_runs = client.search_runs([experiment_id], f"tags.`{UPDATE_TAG}` = '{key}'")
    if earlier_runs and earlier_runs[0].info.status == "FINISHED":
        return str(earlier_runs[0].info.run_id)
    run = (
        earlier_runs[0]
        if earlier_runs
        else client.create_run(experiment_id, run_name=version, tags={UPDATE_TAG: key})
    )
    run_id = str(run.info.run_id)
    for name, value in _parameters(content).items():
        client.log_param(run_id, name, value)
    for name, figure in _figures(content).items():
        client.log_metric(run_id, name, figure)
    _log_version(client, registry, version, run.info, content)
    client.set_terminated(run_id)
    return run_id


def _parameters(content: dict[str, Any]) -> dict[str, object]:
    rule = {f"rule.{name}": value for name, value in content["rule"].items()}
    names = (
        "champion",
        "recipe",
        "old_data",
        "new_data",
        "new_manifest_sha256",
        "operating_point",
        "challenger_key",
    )
    counts = {
        f"{part}.{side}": counts[side]
        for part, counts in content["counts"].items()
        for side in ("train", "validation", "test")
    }
    return {**{name: content[name] for name in names}, **rule, **counts, "notice": "Research use only."}


def _figures(content: dict[str, Any]) -> dict[str, float]:
    """Return the differences of whole tests with bounds and n, and whether the challenger was promoted."""
    figures: dict[str, float] = {"promoted": float(content["is_promoted"])}
    for check in content["checks"]:
        if check["group"] or check["value"] is None:
            continue
        name = f"{check['test']}_{check['metric']}_difference"
        figures |= {name: check["value"], f"{name}_n": float(check["n"])}
        if check["ci95"]:
            figures |= {f"{name}_low": check["ci95"][0], f"{name}_high": check["ci95"][1]}
    return figures


def _log_version(
    client: "MlflowClient", registry: Path, version: str, run_info: Any, content: dict[str, Any]
) -> None:
    """Write the version to MLflow's model registry, under the name of the folder; the alias where it serves now."""
    versions = read_registry(registry)
    name, run_id = f"dermkit-{registry.resolve().name}", str(run_info.run_id)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    model_versions = [row for row in client.search_model_versions(f"name = '{name}'") if row.run_id == run_id]
    folder = versions.version_folder(version).resolve().as_uri()
    state = "promoted" if content["is_promoted"] else "refused"
    model_version = model_versions[0] if model_versions else client.create_model_version(
        name, source=str(run_info.artifact_uri), run_id=run_id,
        tags={"dermkit.version": version, "dermkit.state": state, "dermkit.folder": folder},
        description="Research use only. Not a medical device. " + " ".join(content["sentences"])[:3000],
    )  # fmt: skip
    if versions.current == version:  # another one may serve by now
        client.set_registered_model_alias(name, SERVING_ALIAS, model_version.version)
