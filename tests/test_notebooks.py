"""The notebooks run from top to bottom on made images, show what they promise, and are stored without outputs."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from dermkit.data.synthetic.dataset import make_dataset_folder

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PREPROCESSING, TRAINING, COMPARISON = (
    "1-preprocessing.ipynb",
    "2-training-and-evaluation.ipynb",
    "3-comparison.ipynb",
)
KERNEL = "dermkit-test"
SECONDS = 500  # for one cell; the longest takes about 20 on two cores

Node = Any  # nbformat's own dictionaries, which it leaves untyped


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a kernel that is this very interpreter, whatever kernels the machine has; it writes below tmp_path only."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": KERNEL,
        "language": "python",
    }
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter-runtime"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter-config"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return KERNEL


def read(name: str) -> Node:
    return nbformat.read(NOTEBOOKS / name, as_version=nbformat.NO_CONVERT)  # type: ignore[no-untyped-call]


def executed(name: str, kernel: str, folder: Path, **parameters: object) -> Node:
    """Run a notebook in `folder` with these parameters set after its parameters cell; a cell's error raises."""
    notebook = read(name)
    (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    known = {line.split(" = ")[0] for line in notebook.cells[place].source.splitlines()}
    assert set(parameters) <= known, "the notebook has no such parameter"
    lines = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    added = nbformat.v4.new_code_cell(lines)  # type: ignore[no-untyped-call]
    notebook.cells.insert(place + 1, added)
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


def outputs(notebook: Node, cell_id: str) -> list[Node]:
    (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]
    return list(cell.outputs)


def text(notebook: Node, cell_id: str) -> str:
    return "\n".join(item.get("data", {}).get("text/plain", "") for item in outputs(notebook, cell_id))


def pictures(notebook: Node) -> dict[str, int]:
    """Return cell id -> number of PNG pictures that it shows."""
    found = {
        cell.id: sum("image/png" in item.get("data", {}) for item in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    return {name: count for name, count in found.items() if count}


def spoken(notebook: Node) -> str:
    """Return all that the cells wrote beside their results: warnings land here."""
    items = [item for cell in notebook.cells if cell.cell_type == "code" for item in cell.outputs]
    return "".join(item.text for item in items if item.output_type == "stream")


def problems(notebook: Node) -> list[str]:
    """Return what must not be in a stored notebook."""
    found = []
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        found.append("not nbformat 4.5")
    if "Research use only. Not a medical device." not in notebook.cells[0].source:
        found.append("no notice at the top")
    if set(notebook.metadata) - {"kernelspec", "language_info"}:
        found.append("metadata of an editor")
    for cell in notebook.cells:
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            found.append(f"{cell.id}: stored with outputs")
        if set(cell.metadata) - {"tags"}:
            found.append(f"{cell.id}: metadata of an editor")
        # Editors make up ids of eight hexadecimal digits; names stay the same and can be read in a diff.
        if not cell.id.replace("-", "").isalpha():
            found.append(f"{cell.id}: an id that nobody chose")
    return found


def test_these_are_all_notebooks() -> None:
    assert sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")) == [PREPROCESSING, TRAINING, COMPARISON]


@pytest.mark.parametrize("name", [PREPROCESSING, TRAINING, COMPARISON])
def test_notebooks_are_stored_without_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert problems(notebook) == []


def test_a_notebook_with_outputs_is_refused() -> None:
    notebook = read(PREPROCESSING)
    cell = next(cell for cell in notebook.cells if cell.id == "import")
    cell.outputs = [nbformat.v4.new_output("stream", text="seen")]  # type: ignore[no-untyped-call]
    assert problems(notebook) == ["import: stored with outputs"]
    cell.outputs, cell.execution_count, cell.id = [], 3, "0f3a9c1e"
    cell.metadata["ExecuteTime"] = {}
    notebook.cells[0].source = "# Title"
    assert problems(notebook) == [
        "no notice at the top",
        "0f3a9c1e: stored with outputs",
        "0f3a9c1e: metadata of an editor",
        "0f3a9c1e: an id that nobody chose",
    ]


@pytest.fixture
def own_folder(tmp_path: Path) -> str:
    """Return a folder as a person may have it: classes, and no published test side."""
    images = tmp_path / "mine"
    make_dataset_folder(
        images, lesions_per_class={"benign": 20, "malignant": 20}, photos_per_lesion=(1, 1), size=64
    )
    return str(images)


def test_preprocessing(kernel: str, tmp_path: Path) -> None:
    notebook = executed(PREPROCESSING, kernel, tmp_path, OUT=str(tmp_path / "out"))
    assert spoken(notebook) == ""
    assert pictures(notebook) == {"look": 1, "resize": 1, "augment": 1, "excluded": 1}
    assert "truncated" in text(notebook, "refused")
    assert "copies_across" in text(notebook, "warnings")
    assert text(notebook, "excluded").count("same pixels as test image") == 3
    # What was planted: three copies, found; three siblings, which nothing in a folder tells.
    assert text(notebook, "truth").count("copy") == text(notebook, "truth").count("True") == 3
    assert text(notebook, "truth").count("sibling") == text(notebook, "truth").count("False") == 3
    assert (tmp_path / "out" / "dataset" / "splits" / "given.csv").is_file()


def test_preprocessing_of_ones_own_folder(kernel: str, tmp_path: Path, own_folder: str) -> None:
    notebook = executed(PREPROCESSING, kernel, tmp_path, DATA=own_folder, OUT=str(tmp_path / "out"))
    assert pictures(notebook) == {"look": 1, "resize": 1, "augment": 1}
    assert text(notebook, "leaks") == text(notebook, "truth") == ""
    assert (tmp_path / "out" / "dataset" / "splits" / "holdout.csv").is_file()


def test_training_and_evaluation(kernel: str, tmp_path: Path) -> None:
    notebook = executed(TRAINING, kernel, tmp_path, OUT=str(tmp_path / "out"), EPOCHS=2)
    assert spoken(notebook) == ""
    assert set(pictures(notebook)) == {"batch", "curves", "confusion", "roc", "mistakes", "sheet"}
    assert text(notebook, "train").count("epoch 2/2") == 3  # two trials and the chosen one
    assert text(notebook, "trials").count("True") == 1
    for metric in ("accuracy", "precision", "recall", "f1", "specificity", "auroc", "loss"):
        assert f" {metric} " in text(notebook, "figures")
    assert "notes.jpg" in text(notebook, "predict")
    assert text(notebook, "predictions").count("MADE_") == 8


def test_training_on_ones_own_folder(kernel: str, tmp_path: Path, own_folder: str) -> None:
    parameters = {"DATA": own_folder, "OUT": str(tmp_path / "out"), "EPOCHS": 1, "SIZE": 32}
    notebook = executed(TRAINING, kernel, tmp_path, **parameters)
    # A quarter of forty images is the test side, and these stand in for new images.
    assert text(notebook, "predictions").count("MADE_") == 10
    assert "sheet" in pictures(notebook)


@pytest.mark.slow
def test_comparison(kernel: str, tmp_path: Path) -> None:
    notebook = executed(COMPARISON, kernel, tmp_path, OUT=str(tmp_path / "out"), EPOCHS=1)
    assert spoken(notebook) == ""
    assert pictures(notebook) == {"curves": 2}
    assert "Mixed_6a" in text(notebook, "recipes") and "layer3" in text(notebook, "recipes")
    for split in ("validation", "test"):
        table = text(notebook, split)
        assert "s0-inception-v3-reduced" in table and "s0-resnet50-reduced" in table
        # Six figures of two nets, each with its n, or with why it is not defined.
        assert table.count(", n ") + table.count("not defined: ") == 12
        assert (
            len(re.findall(r"accuracy +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\](?: \(unreliable\))?, n \d+", table)) == 4
        )
    assert text(notebook, "same-images").count("True") == 2
    assert "exact McNemar" in text(notebook, "mcnemar")
