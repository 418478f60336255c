"""An update in an MLflow store: parameters, figures, the version, once; nothing without MLflow, nothing unasked."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from conftest import Invoke
from dermkit.errors import OutputError, UsageError
from dermkit.integrations import mlflow as integration
from dermkit.integrations.mlflow import EXPERIMENT, SERVING_ALIAS, log_update
from dermkit.runs.layout import UPDATE
from dermkit.runs.registry import UPDATES_FOLDER, register_first, roll_back
from test_registry import add, make_run


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Return a registry whose v2 was promoted by an update."""
    folder = tmp_path / "lesions"
    register_first(folder, make_run(tmp_path / "run1", 1), details={})
    add(folder, 2, is_promoted=True)
    check = {
        "test": "old", "attribute": "", "group": "", "metric": "auroc", "margin": 0.05, "value": 0.01,
        "ci95": [-0.02, 0.04], "n": 400, "method": "DeLong", "n_units": 90, "outcome": "not worse",
        "images_needed": None,
    }  # fmt: skip
    UPDATE.write(
        folder / UPDATES_FOLDER / "key2",
        {
            "champion": "v1", "recipe": "quick", "old_data": "a", "new_data": "b", "new_manifest_sha256": "0" * 64,
            "operating_point": "sensitivity=0.95", "challenger_key": "1" * 64, "is_promoted": True,
            "rule": {"metric": "auroc", "margin": 0.05, "sensitivity_margin": 0.05}, "sentences": ["not worse."],
            "counts": {part: {"train": 1, "validation": 2, "test": 3} for part in ("old", "new")},
            "checks": [check, {**check, "group": "F", "attribute": "sex"}, {**check, "test": "new", "value": None}],
        },
    )  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of MLflow and of what it imports
def test_a_local_store_gets_parameters_figures_and_the_version_once(registry: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'store.db'}"
    run_id = log_update(registry, "v2", uri)
    assert log_update(registry, "v2", uri) == run_id
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1
    data = client.get_run(run_id).data
    assert data.params["rule.margin"] == "0.05" and data.params["new.test"] == "3"
    assert data.metrics == {
        "promoted": 1.0, "old_auroc_difference": 0.01, "old_auroc_difference_n": 400.0,
        "old_auroc_difference_low": -0.02, "old_auroc_difference_high": 0.04,
    }  # fmt: skip
    version = client.get_model_version_by_alias("dermkit-lesions", SERVING_ALIAS)
    assert version.run_id == run_id and version.tags["dermkit.version"] == "v2"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert not (Path.cwd() / "mlruns").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_store_that_cannot_be_written_says_so_and_leaves_the_registry(registry: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "broken.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(OutputError, match="MLflow could not write there"):
        log_update(registry, "v2", f"sqlite:///{tmp_path / 'broken.db'}")


def test_without_mlflow_it_says_so_before_anything_is_trained(
    registry: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke, tmp_path: Path
) -> None:
    monkeypatch.setattr(integration, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="not installed"):
        log_update(registry, "v2", "sqlite:///x.db")
    code, _, err = invoke("update", registry, tmp_path, "--mlflow", "sqlite:///x.db")
    assert code == 2 and "dermkit[mlflow]" in err and "nothing was trained" in err


def test_a_version_that_no_update_made_is_not_logged(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "find_spec", lambda _name: object())
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=FakeClient))
    with pytest.raises(UsageError, match="was registered"):
        log_update(registry, "v1", "http://localhost")


class FakeClient:
    """What stands in for MLflow's client: it notes its calls."""

    calls: ClassVar[list[tuple[str, tuple[Any, ...]]]] = []
    options: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, **_: object) -> None:
        self.calls.clear()

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "get_experiment_by_name": None, "create_experiment": "7", "search_runs": [],
            "create_run": SimpleNamespace(info=SimpleNamespace(run_id="r1", artifact_uri="mlflow-artifacts:/1/r1")),
            "search_registered_models": [],
            "search_model_versions": [], "create_model_version": SimpleNamespace(version="1"),
        }  # fmt: skip

        def call(*args: Any, **options: object) -> Any:
            self.calls.append((name, args))
            self.options[name] = options
            return answers.get(name)

        return call


def test_what_is_written_to_a_store(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "find_spec", lambda _name: object())
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=FakeClient))
    assert log_update(registry, "v2", "http://localhost") == "r1"
    names = [name for name, _ in FakeClient.calls]
    assert names.count("log_metric") == 5 and "set_registered_model_alias" in names
    assert not any("artifact" in name for name in names), "no image, answer or weight leaves"
    assert names[-1] == "set_terminated"
    # A tracking server refuses a path of another machine as the source of a version.
    assert FakeClient.options["create_model_version"]["source"] == "mlflow-artifacts:/1/r1"
    assert FakeClient.options["create_model_version"]["tags"]["dermkit.folder"].endswith("versions/v2")


def test_the_alias_stays_with_the_version_that_serves(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "find_spec", lambda _name: object())
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=FakeClient))
    roll_back(registry, "v1")
    log_update(registry, "v2", "http://localhost")
    names = [name for name, _ in FakeClient.calls]
    assert "create_model_version" in names and "set_registered_model_alias" not in names


def test_no_password_of_a_store_is_in_a_message(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(tracking_uri: str, registry_uri: str) -> None:
        raise ConnectionError(f"cannot reach {tracking_uri} or {registry_uri}")

    monkeypatch.setattr(integration, "find_spec", lambda _name: object())
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=closed))
    with pytest.raises(OutputError) as error:
        log_update(registry, "v2", "postgresql://ann:secret7@db.example/mlflow")
    assert "secret7" not in str(error.value) and "db.example" in error.value.message


def test_nothing_of_mlflow_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys, dermkit.cli.app, dermkit.integrations.mlflow; assert 'mlflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
