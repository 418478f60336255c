"""Charts are drawn whole for any classes and gaps, name what they were given, and touch nothing global."""

import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from dermkit.errors import OutputError
from dermkit.metrics.classification.reader_studies import READER_STUDIES
from dermkit.render import charts, curves, style
from drawn_once import draw_once

LONG = "pigmented benign keratosis of a very long name that nobody would print"
HOSTILE = ["$a$b$ & _c", "_hidden", "日本語 <b>", ""]


@pytest.fixture(autouse=True)
def charts_drawn_once() -> None:
    """Let every chart be drawn here: this takes the place of the fixture that draws equal ones once."""


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def _log(epochs: int = 8) -> pd.DataFrame:
    n = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {"epoch": n, "phase": np.where(n < 4, 1, 2), "train_loss": 2.0 / n, "val_loss": 1.0 + n / 9,
         "train_accuracy": n / 10, "val_accuracy": n / 12, "val_balanced_accuracy": n / 14}
    )  # fmt: skip


def _roc(classes: Sequence[str]) -> pd.DataFrame:
    fpr = np.linspace(0, 1, 9)
    return pd.concat([pd.DataFrame({"class": name, "fpr": fpr, "tpr": np.sqrt(fpr)}) for name in classes])


def _bins() -> pd.DataFrame:
    # As read from a CSV: text, with empty bins.
    return pd.DataFrame(
        {
            "bin": list("0123"),
            "n": ["0", "3", "9", "0"],
            "confidence": ["", "0.4", "0.7", ""],
            "accuracy": ["", "0.3", "0.8", ""],
        }
    )


def _benefit() -> pd.DataFrame:
    at = np.arange(1, 100) / 100
    return pd.DataFrame(
        {"threshold": at, "as_trained": 0.2 - at / 5, "calibrated": 0.21 - at / 5,
         "call_all": 0.2 - 0.8 * at / (1 - at), "call_none": 0.0}
    )  # fmt: skip


def _values() -> pd.DataFrame:
    rows = [
        ("accuracy", "test", 0.4, 0.3, 0.5),
        ("f1", "test", np.nan, np.nan, np.nan),
        ("f1", "validation", 0.6, np.nan, np.nan),
    ]
    return pd.DataFrame(rows, columns=["metric", "split", "value", "low", "high"])


def _runs() -> pd.DataFrame:
    return pd.DataFrame({"metric": "accuracy", "run": ["a", "b", "c"], "value": [0.6, 0.7, 0.65]})


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "progress": lambda path: charts.draw_progress(_log(), path, best_epoch=3),
    "progress of one epoch": lambda path: charts.draw_progress(_log(1), path),
    "progress of long training": lambda path: charts.draw_progress(_log(300), path),
    "progress with gaps": lambda path: charts.draw_progress(
        _log().drop(columns="val_loss").assign(train_loss=np.nan), path
    ),
    "roc": lambda path: curves.draw_roc(
        _roc("ab"), path, auroc={"a": None, "b": 0.7}, malignant_classes=["b"], title="x"
    ),
    "roc of nobody": lambda path: curves.draw_roc(_roc("a").head(0), path),
    "roc of many": lambda path: curves.draw_roc(_roc([f"class {i}" for i in range(24)]), path),
    "roc of hostile names": lambda path: curves.draw_roc(_roc(HOSTILE), path, title="$"),
    "calibration": lambda path: curves.draw_calibration(_bins(), path, title="$x$"),
    "calibration of nobody": lambda path: curves.draw_calibration(_bins().head(1), path),
    "bars": lambda path: charts.draw_metric_bars(_values(), path),
    "bars of nothing": lambda path: charts.draw_metric_bars(_values().head(0), path),
    "net benefit": lambda path: curves.draw_net_benefit(_benefit(), path, title="Test"),
    "people": lambda path: curves.draw_roc_with_readers(_roc(["m"]), path, studies=READER_STUDIES, title="Test"),
    "spread": lambda path: charts.draw_spread(_runs(), path, final_run="b"),
    "spread of one run": lambda path: charts.draw_spread(_runs().head(1), path, final_run="b"),
    "spread of nothing": lambda path: charts.draw_spread(_runs().head(0), path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawn_whole_and_at_report_size(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = io.BytesIO()

    def save_both(figure: Figure, path: Path) -> None:
        copy = pickle.loads(pickle.dumps(figure))  # noqa: S301  a layout that is made again may differ
        copy.savefig(reference, format="png", dpi=style.DPI)
        style.save_figure(figure, path)

    for room in (charts, curves):
        monkeypatch.setattr(room, "save_figure", save_both)
    DRAWINGS[name](tmp_path / "a.png")
    pixels = _pixels(tmp_path / "a.png")
    with Image.open(reference) as image:
        assert np.asarray(image)[..., 3].min() == 255, "opaque: nothing is lost with the alpha channel"
        assert np.array_equal(pixels, np.asarray(image.convert("RGB"))), (
            "drawn once, the layout is that of two draws"
        )
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
        assert set(image.info) == {"dpi"}, "no software tag: its version would change the bytes"
        assert image.info["dpi"] == pytest.approx((style.DPI, style.DPI), abs=0.01)
    assert 400 < pixels.shape[1] < 1200
    assert pixels.min() < 100 < 250 < pixels.max(), "ink on paper"
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").stat().st_size < 300_000


def _texts(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], None]) -> list[str]:
    """Return every text of the figures that `draw` saves."""
    found: list[str] = []

    def keep(figure: Figure, _path: Path) -> None:
        figure.canvas.draw()
        found.extend(
            text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible()
        )

    for room in (charts, curves):
        monkeypatch.setattr(room, "save_figure", keep)
    draw()
    return found


@pytest.mark.parametrize("k", [2, 3, 7, 9, 12])
def test_confusion_says_counts_shares_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    classes = [LONG, *(f"class {i}" for i in range(1, k))]
    matrix = np.arange(k * k).reshape(k, k)
    matrix[1] = 0
    texts = _texts(monkeypatch, lambda: charts.draw_confusion(matrix, classes, tmp_path / "a.png"))
    assert f"{matrix[0, 1]}\n{matrix[0, 1] / matrix[0].sum():.0%}" in texts
    assert texts.count("0\n-") == k, "a class without images has no shares"
    assert any(text.endswith(f"n = {matrix[0].sum()}") for text in texts)
    assert any(text.startswith("pigmented benign\nkeratosis") for text in texts), "long names are wrapped"
    monkeypatch.undo()
    charts.draw_confusion(matrix, classes, tmp_path / "a.png")
    assert _pixels(tmp_path / "a.png").shape[1] < 1500


def test_confusion_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\), but there are 3 classes"):
        charts.draw_confusion([[1, 0], [0, 1]], ["a", "b", "c"], tmp_path / "a.png")


def test_the_darkest_cell_is_the_largest_share(tmp_path: Path) -> None:
    charts.draw_confusion([[90, 10], [40, 60]], ["a", "b"], tmp_path / "a.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    charts.draw_confusion([[10, 90], [40, 60]], ["a", "b"], paths[1])
    left, right = (_pixels(path).astype(float).mean(axis=2) for path in paths)
    difference = np.argwhere(np.abs(left - right) > 40)
    assert len(difference) > 1000
    columns = np.argwhere(left - right < -100)[:, 1].mean(), np.argwhere(left - right > 100)[:, 1].mean()
    assert columns[0] < columns[1], "the dark cell moved from left to right"


def test_labels_are_never_hidden_or_taken_for_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch, lambda: curves.draw_roc(_roc(HOSTILE), tmp_path / "a.png", auroc={"_hidden": 0.5}))
    assert " _hidden: 0.50" in texts
    assert r"\$a\$b\$ & _c" in texts
    assert "??? <b>" in texts
    assert "(empty)" in texts


def test_the_auroc_beside_a_class_is_the_one_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ones = {"a": 0.123, "b": None}
    texts = _texts(monkeypatch, lambda: curves.draw_roc(_roc("ab"), tmp_path / "a.png", auroc=given_ones))
    assert {"a: 0.12", "b"} <= set(texts)


def test_an_undefined_bar_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch, lambda: charts.draw_metric_bars(_values(), tmp_path / "a.png"))
    assert {"not defined", "0.40", "0.60"} <= set(texts)


def test_progress_marks_phases_and_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch, lambda: charts.draw_progress(_log(), tmp_path / "a.png", best_epoch=3))
    assert {"phase 1", "phase 2", "best epoch: 3", "Loss", "Accuracy", "Balanced accuracy"} <= set(texts)


def test_people_are_points_named_with_their_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = _roc(["malignant"])
    path, told = tmp_path / "a.png", "0.70 (0.68 to 0.72)"
    texts = _texts(
        monkeypatch, lambda: curves.draw_roc_with_readers(curve, path, studies=READER_STUDIES, auroc=told)
    )
    assert {"1", "2", "3", "4", "the net: AUROC 0.70 (0.68 to 0.72)"} <= set(texts)
    assert "1  dermatologists, 92 studies: sensitivity 0.88, specificity 0.81" in texts


def test_a_calibration_that_changes_nothing_has_no_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _benefit()

    def draw(frame: pd.DataFrame) -> list[str]:
        return _texts(monkeypatch, lambda: curves.draw_net_benefit(frame, tmp_path / "a.png"))

    assert {"the net as trained", "the net, calibrated", "call everyone malignant", "call no one"} <= set(
        draw(table)
    )
    for column in (table["as_trained"], ""):
        assert "the net, calibrated" not in draw(table.assign(calibrated=column))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.sampled_from([0, 20]))
def test_any_name_becomes_drawable(name: str, width: int) -> None:
    text = style.mpl_safe(name, width)
    assert text
    assert not text.startswith("_")
    assert "$" not in text.replace(r"\$", "")
    assert len(text) <= 2 * style.MAX_NAME_LENGTH + 2
    figure = Figure()
    figure.text(0.5, 0.5, text)
    figure.canvas.draw()


CHANGES: dict[str, Callable[[Figure], object]] = {
    "text": lambda figure: figure.axes[0].set_title("another"),
    "colour of a line": lambda figure: figure.axes[0].lines[0].set_color("#123456"),
    "numbers of a line": lambda figure: figure.axes[0].lines[0].set_ydata([0, 0.999]),
    "limits": lambda figure: figure.axes[0].set_xlim(0, 2),
    "layout": lambda figure: figure.set_layout_engine("tight"),
    "size": lambda figure: figure.set_size_inches(3, 3),
    "setting of matplotlib": lambda _: matplotlib.rcParams.__setitem__("path.simplify_threshold", 0.5),
}


def test_equal_figures_are_drawn_once_and_any_other_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    changes: list[Callable[[Figure], object]] = []

    def render(figure: Figure) -> bytes:
        drawn.append(figure)
        return real(figure)

    def save(figure: Figure, path: Path) -> None:
        for change in changes:
            change(figure)
        style.save_figure(figure, path)

    real = style.render_png
    monkeypatch.setattr(style, "render_png", draw_once(render))
    monkeypatch.setattr(curves, "save_figure", save)
    with matplotlib.rc_context():
        for path in (tmp_path / "a.png", tmp_path / "b.png"):
            curves.draw_roc(_roc(["a", "b"]), path, title="t")
        assert len(drawn) == 1 and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        for number, change in enumerate(CHANGES.values(), start=2):
            changes[:] = [change]
            curves.draw_roc(_roc(["a", "b"]), tmp_path / "c.png", title="t")
            assert len(drawn) == number
    monkeypatch.setattr(style, "render_png", real)
    changes.clear()
    curves.draw_roc(_roc(["a", "b"]), tmp_path / "d.png", title="t")
    assert (tmp_path / "d.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_threads_draw_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda path: curves.draw_roc(_roc(["a", LONG]), path, title="t"), paths))
    assert len({path.read_bytes() for path in paths}) == 1


def test_neither_pyplot_nor_torch_is_imported() -> None:
    code = (
        "import sys, dermkit.reporting.report\n"
        "print([name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        charts.draw_metric_bars(_values(), tmp_path / "file" / "a.png")
