"""`predict --engine`: every engine gives torch's numbers, auto takes the fastest of them, and what is wrong is said."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from conftest import Invoke
from dermkit.errors import ResourceError, RunInterrupt, UntrustedError, UsageError
from dermkit.files import sha256_file
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.models.engines import graph
from dermkit.models.engines.packages import AUTO
from dermkit.models.engines.scoring import SessionEngine
from dermkit.models.engines.sessions import NetOutputs, OpenVinoSession
from dermkit.prediction import engine_choice
from dermkit.prediction.engine_choice import Measurement, cache_folder, select_engine
from dermkit.prediction.load import load_model
from dermkit.prediction.predictor import Predictor
from dermkit.prediction.run import _job_identity, predict
from dermkit.progress import Progress
from test_export import CNN, photographs, preprocessing_of, random_net, save

__all__ = ["photographs"]

for _package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(_package, reason="dermkit[export] is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model", random_net(CNN, 3), CNN, preprocessing_of(24))


@pytest.fixture(scope="module")
def onnx_file(model: Path) -> bytes:
    """Return the model's net as ONNX, written once: it takes seconds."""
    net = load_model(model).nets[0]
    return graph.onnx_bytes(net, preprocessing_of(24), ("identity",), properties={}, description="")


@pytest.fixture
def cache(tmp_path: Path, onnx_file: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder; nets are written in no time."""
    monkeypatch.setenv(engine_choice.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(graph, "onnx_bytes", lambda *_args, **_texts: onnx_file)
    return tmp_path / "cache"


def selected(model: Path, engine: str, threads: int = 2) -> tuple[Predictor, list[str]]:
    lines: list[str] = []
    return select_engine(load_model(model), engine, threads=threads, progress=Progress(say=lines.append)), lines


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_an_engine_predicts_what_torch_predicts(
    model: Path, cache: Path, photographs: Path, tmp_path: Path, engine: str, batch_size: int
) -> None:
    tables = {}
    for name in ("torch", engine):
        outcome = predict(model, [str(photographs)], out=tmp_path / name, engine=name, batch_size=batch_size)
        tables[name] = pd.read_csv(outcome.out / "predictions.csv")
        assert outcome.n_scored == 33 and outcome.n_rejected == 1
    assert tables["torch"]["predicted"].tolist() == tables[engine]["predicted"].tolist()
    columns = [name for name in map(str, tables["torch"]) if name.startswith("p_")]
    np.testing.assert_allclose(tables[engine][columns], tables["torch"][columns], rtol=0, atol=1e-5)
    assert tables["torch"][columns].max(axis=1).std() > 0.01
    mode = json.loads((tmp_path / engine / "predict.json").read_text())["inference_mode"]
    assert mode.startswith({"onnxruntime": "ONNX Runtime 1.", "openvino": "OpenVINO 20"}[engine])


SIGNAL_AFTER_OPENVINO = """
import faulthandler, gc, os, signal, sys, threading
from pathlib import Path
from dermkit.models.engines.sessions import OpenVinoSession
faulthandler.enable()
sessions = [OpenVinoSession(Path(sys.argv[1]))]
dropping = threading.Thread(target=lambda: (sessions.clear(), gc.collect()))
dropping.start()
dropping.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(os.name != "posix", reason="stacks of signal handlers as POSIX has them")
def test_a_signal_is_handled_after_another_thread_has_dropped_an_openvino_net(
    onnx_file: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_file)
    done = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_OPENVINO, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_auto_measures_once_and_takes_the_fastest_that_gives_the_numbers(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"onnxruntime": 50.0, "openvino": 90.0, "torch": 70.0}
    measured: list[str] = []

    def measure(_predictor: Predictor, candidate: Predictor, _load: object) -> Measurement:
        name = "torch"
        if not candidate.runtime.nets:
            name = "openvino" if "OpenVINO" in candidate.engine.net_variant else "onnxruntime"
        measured.append(name)
        return Measurement(rates[name], 1e-7, 32)

    monkeypatch.setattr(engine_choice, "_measure", measure)
    chosen, lines = selected(model, AUTO)
    assert "OpenVINO" in chosen.engine.net_variant
    assert "OpenVINO" in lines[-1] and "the fastest" in lines[-1] and lines[-1].endswith(" 50")
    assert sorted(measured) == ["onnxruntime", "openvino", "torch"]
    again, lines = selected(model, AUTO)
    assert again.engine.net_variant == chosen.engine.net_variant and len(measured) == 3, "measured once"
    assert len(lines) == 1, lines
    selected(model, AUTO, threads=1)
    assert len(measured) == 6, "another number of threads is another measurement"
    monkeypatch.setattr(engine_choice, "processor_name", lambda: "another processor")
    rates["torch"] = 100.0
    chosen, lines = selected(model, AUTO)
    assert chosen.runtime.nets != () and lines[-1].startswith("engine: torch")
    for path in cache.rglob("measurements-*.json"):
        path.write_text("{broken")
    measured.clear()
    selected(model, AUTO)
    assert len(measured) == 3, "a broken record costs a measurement, and nothing else"


def test_a_measured_rate_is_of_all_batches(model: Path, cache: Path) -> None:
    chosen, lines = selected(model, AUTO)
    (record,) = cache.rglob("measurements-*.json")
    engines = json.loads(record.read_text())["engines"]
    assert set(engines) == {"torch", "onnxruntime", "openvino"}
    assert all(entry["images_per_second"] > 0 and entry["problem"] == "" for entry in engines.values())
    best = max(engines, key=lambda name: engines[name]["images_per_second"])
    assert (best == "torch") == (chosen.runtime.nets != ())
    assert len(lines) == 5, lines  # one net written, three measured, one chosen


def scaled(session: Any, factor: float) -> Any:
    def score(pixels: Any, metadata: Any = None) -> Any:
        outputs = session(pixels, metadata)
        return outputs._replace(logits=outputs.logits * np.float32(factor))

    return score


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_an_engine_of_other_numbers_is_refused_or_left_out(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setattr(
        engine_choice,
        "OpenVinoSession",
        lambda *args, **options: scaled(OpenVinoSession(*args, **options), factor),
    )
    with pytest.raises(
        UntrustedError, match=r"--engine openvino: does not give what torch gives: a probability of"
    ):
        selected(model, "openvino")
    with pytest.raises(UntrustedError, match="does not give what torch gives"):  # from the record too
        selected(model, "openvino")
    chosen, lines = selected(model, AUTO)
    assert "OpenVINO" not in chosen.engine.net_variant
    assert any("is left out: a probability of" in line for line in lines)


def test_an_engine_that_cannot_load_the_net_is_left_out(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_options: object) -> None:
        raise UntrustedError(f"{path.name}: OpenVINO cannot load it: no operator")

    monkeypatch.setattr(engine_choice, "OpenVinoSession", fail)
    monkeypatch.setattr(engine_choice, "_measure", lambda *_: Measurement(1.0, 1e-7, 32))
    _, lines = selected(model, AUTO)
    assert "net-0.onnx: OpenVINO cannot load it: no operator: it is left out" in lines
    assert lines[-1].startswith("engine: ") and "OpenVINO" not in lines[-1]
    with pytest.raises(UntrustedError, match="no operator"):
        selected(model, "openvino")


def test_an_engine_that_fails_as_it_runs_is_left_out(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_pixels(*args: Any, **options: Any) -> Any:
        session = OpenVinoSession(*args, **options)
        return lambda pixels, metadata=None: session(
            pixels[:, :5], metadata
        )  # of a size that the net does not take

    monkeypatch.setattr(engine_choice, "OpenVinoSession", without_pixels)
    monkeypatch.setattr(engine_choice, "_images_per_second", lambda *_: 1.0)
    with pytest.raises(ResourceError, match="OpenVINO failed on 32 images"):
        selected(model, "openvino")
    _, lines = selected(model, AUTO)
    assert any("OpenVINO failed on 32 images" in line and line.endswith("it is left out") for line in lines)
    assert lines[-1].startswith("engine: ") and "OpenVINO" not in lines[-1]


def test_a_cached_net_is_named_by_the_bytes_that_were_loaded(model: Path, tmp_path: Path) -> None:
    """Another model is put in the folder after the first was loaded."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    loaded = load_model(folder)
    assert loaded.files_sha256 == sha256_file(folder / CHECKSUM_FILE)
    before = engine_choice._model_cache(loaded)
    shutil.rmtree(folder)
    save(folder, random_net(CNN, 4), CNN, preprocessing_of(24))
    assert engine_choice._model_cache(loaded) == before, "the old net must not get the name of the new one"
    assert _job_identity(loaded, None)["model"] == loaded.files_sha256
    assert engine_choice._model_cache(load_model(folder)) != before


def test_a_stopped_prediction_goes_on_with_the_engine_it_was_begun_with(
    model: Path, cache: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"onnxruntime": 50.0, "openvino": 90.0, "torch": 70.0}
    monkeypatch.setattr(
        engine_choice,
        "_measure",
        lambda _predictor, candidate, _load: Measurement(
            rates[engine_choice.engine_of(candidate.engine.net_variant)], 1e-7, 32
        ),
    )

    def stop(self: Predictor, batch: Any, names: Any = ()) -> Any:
        if any(name.startswith("2") for name in names):
            raise KeyboardInterrupt
        return score(self, batch, names)

    score = Predictor._score
    lines: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(RunInterrupt):
        patch.setattr(Predictor, "_score", stop)
        predict(model, [str(photographs)], out=tmp_path / "out", engine=AUTO, batch_size=4, workers=1)
    shutil.rmtree(cache)
    rates["torch"] = 100.0  # another measurement would choose torch
    with pytest.raises(UsageError, match="it is another one"):
        predict(model, [str(photographs)], out=tmp_path / "out", engine="torch", batch_size=4, workers=1)
    outcome = predict(
        model, [str(photographs)], out=tmp_path / "out", engine=AUTO, batch_size=4, workers=1,
        progress=Progress(say=lines.append),
    )  # fmt: skip
    assert f"engine: openvino, since the unfinished prediction in {outcome.out} was begun with it" in lines
    assert any(line.startswith("going on: ") for line in lines) and outcome.n_scored == 33
    assert json.loads((outcome.out / "predict.json").read_text())["inference_mode"].startswith("OpenVINO 20")
    outcome = predict(model, [str(photographs)], out=tmp_path / "out", engine=AUTO, batch_size=4, workers=1)
    mode = json.loads((outcome.out / "predict.json").read_text())["inference_mode"]
    assert engine_choice.engine_of(mode) == "torch", "a finished prediction binds no new one"


def test_engines_are_measured_in_batches_of_the_size_that_is_used(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: set[int] = set()
    score = Predictor.probabilities

    def record_size(self: Predictor, batch: Any, metadata: Any = None) -> Any:
        sizes.add(len(batch[0]))
        return score(self, batch, metadata)

    monkeypatch.setattr(Predictor, "probabilities", record_size)
    monkeypatch.setattr(engine_choice, "_compare", lambda *_: Measurement(None, 1e-7, 32))
    monkeypatch.setattr(engine_choice, "_ROUNDS", 1)
    for batch_size in (0, 5, 40):
        select_engine(load_model(model), AUTO, threads=1, batch_size=batch_size)
    assert sizes == {16, 5, 40}
    assert len(list(cache.rglob("measurements-*.json"))) == 3


def test_a_wrong_engine_is_told_before_the_model_is_loaded(
    model: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermkit.prediction.load.load_model", lambda *_args, **_options: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"--engine tensorrt: unknown"):
        predict(model, [str(photographs)], out=tmp_path / "out", engine="tensorrt")


def test_a_package_that_cannot_be_imported_is_left_out(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(engine_choice, "_measure", lambda *_: Measurement(1.0, 1e-7, 32))
    _, lines = selected(model, AUTO)
    (line,) = [line for line in lines if line.endswith(": it is left out")]
    assert re.match(r"the package onnxruntime 1\.\S+ is installed and cannot be imported: \w*Error: ", line)
    assert lines[-1].startswith("engine: ") and "ONNX Runtime" not in lines[-1]
    with pytest.raises(UsageError, match=r"the package onnxruntime .* cannot be imported"):
        selected(model, "onnxruntime")
    monkeypatch.setitem(engine_choice._LOADERS, "openvino", engine_choice._LOADERS["onnxruntime"])
    chosen, lines = selected(model, AUTO)
    assert chosen.runtime.nets != () and lines[-1] == "engine: torch, since no other can be used"


@pytest.mark.parametrize(
    "change",
    [
        {"images_per_second": "fast"}, {"images_per_second": -1.0}, {"n_images": 3.5}, {"problem": None},
        {"max_probability_difference": None}, {"max_probability_difference": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_cannot_be_right_costs_a_measurement(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    measured: list[object] = []

    def measure(*candidates: object) -> Measurement:
        measured.append(candidates)
        return Measurement(1.0, 1e-7, 32)

    monkeypatch.setattr(engine_choice, "_measure", measure)
    selected(model, AUTO)
    (record,) = cache.rglob("measurements-*.json")
    content = json.loads(record.read_text())
    content["engines"]["openvino"].update(change)
    record.write_text(json.dumps(content))
    measured.clear()
    selected(model, AUTO)
    assert measured
    _, lines = selected(model, "openvino")
    assert "1e-07 on 32 drawn lesions" in lines[-1]


def test_memory_that_is_too_small_for_the_graph_is_no_fault_of_the_net(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("the export failed, see the report") from MemoryError()

    monkeypatch.setattr(graph, "_translate", fail)
    monkeypatch.setenv(engine_choice.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(ResourceError, match=r"^dermkit/cnn-s1: writing it as ONNX: out of memory"):
        selected(model, "onnxruntime")
    chosen, lines = selected(model, AUTO)
    assert chosen.runtime.nets != ()
    assert lines[-1] == "engine: torch, since dermkit/cnn-s1: writing it as ONNX: out of memory"
    assert not any("not cached" in line for line in lines)


def test_all_views_of_a_batch_are_not_in_memory_at_once() -> None:
    sizes: list[int] = []

    def session(pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NetOutputs:
        assert metadata is not None and (metadata[:, 0] == pixels[:, 0, 0, 0]).all()
        sizes.append(len(pixels))
        logits = np.zeros((len(pixels), 13, 2), np.float32)
        logits[:, :, 0] = pixels[:, 0, 0, :1]
        return NetOutputs(logits, np.repeat(metadata, 2, axis=1))

    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 4, 3), np.uint8)
    metadata = np.arange(5, dtype=np.float32)[:, None]
    engine = SessionEngine(session, "made", 1, n_views=13)
    probabilities, features = engine.score(pixels, metadata=metadata)
    assert max(sizes) * 13 <= 16 and sum(sizes) == 5
    np.testing.assert_allclose(probabilities[:, 0], 1 / (1 + np.exp(-np.arange(5.0))))
    assert features is not None and features[:, 1].tolist() == [0, 1, 2, 3, 4]
    sizes.clear()
    SessionEngine(session, "made", 1).score(pixels, metadata=metadata)
    assert sizes == [5], "one view: a batch stays whole"


def test_a_changed_net_in_the_cache_is_written_again(model: Path, cache: Path) -> None:
    _, lines = selected(model, "onnxruntime")
    assert lines[0].startswith("writing net 1 of 1") and len(lines) == 2
    _, lines = selected(model, "onnxruntime")
    assert len(lines) == 1 and lines[0].startswith("engine: ONNX Runtime"), "written once"
    (net,) = cache.rglob("net-0.onnx")
    whole = net.read_bytes()
    net.write_bytes(whole[:-1] + b"?")
    _, lines = selected(model, "onnxruntime")
    assert any("net-0.onnx: its bytes" in line and "written again" in line for line in lines)
    assert net.read_bytes() == whole
    (net.parent / CHECKSUM_FILE).write_text("")  # not listed: not verified
    _, lines = selected(model, "onnxruntime")
    assert any(line.startswith("writing net 1 of 1") for line in lines)
    (net.parent / CHECKSUM_FILE).unlink()  # a write that was interrupted
    _, lines = selected(model, "onnxruntime")
    assert any(line.startswith("writing net 1 of 1") for line in lines)


def test_a_closed_cache_costs_time_alone(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(engine_choice.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    chosen, lines = selected(model, "onnxruntime")
    assert "ONNX Runtime" in chosen.engine.net_variant and any("are not cached" in line for line in lines)


def test_what_is_absent_is_named_and_auto_goes_on_with_torch(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke, photographs: Path, tmp_path: Path
) -> None:
    from dermkit.models.engines import packages

    monkeypatch.setattr(packages, "installed_version", lambda _package: None)
    code, _, messages = invoke("predict", model, photographs, "--out", tmp_path / "out", "--engine", "openvino")
    assert code == 2 and "--engine openvino: the package openvino is not installed" in messages
    assert "pip install 'dermkit[export]'" in messages and not (tmp_path / "out").exists()
    monkeypatch.setattr(engine_choice, "installed_version", lambda _package: None)
    chosen, lines = selected(model, AUTO)
    assert chosen.runtime.nets != () and "no other is installed" in lines[-1]
    with pytest.raises(UsageError, match=r"--engine openvno: unknown; did you mean `openvino`"):
        selected(model, "openvno")


def test_a_net_that_onnx_cannot_hold_is_scored_by_torch(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_texts: object) -> bytes:
        raise UsageError("strange: cannot be written as ONNX: no operator")

    monkeypatch.setattr(graph, "onnx_bytes", refuse)
    chosen, lines = selected(model, AUTO)
    assert chosen.runtime.nets != ()
    assert lines[-1] == "engine: torch, since strange: cannot be written as ONNX: no operator"
    with pytest.raises(UsageError, match="no operator"):
        selected(model, "onnxruntime")


def test_the_cache_is_where_the_system_has_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(engine_choice.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dermkit"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "dermkit"
    monkeypatch.setenv(engine_choice.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
