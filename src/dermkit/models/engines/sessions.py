"""A net in a file, run by ONNX Runtime or OpenVINO on the CPU in float32. Without torch.

Shapes: N images of S x S pixels, V test-time views, C features of an image, K classes, M columns of metadata.
"""

import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import ResourceError, UntrustedError
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.engines.onnx_operators import ENDLESS_OPERATORS, onnx_operators
from dermkit.models.engines.packages import load_onnxruntime, load_openvino
from dermkit.threads import cpu_count

PIXELS_INPUT, METADATA_INPUT = "pixels", "metadata"
"""Names of the inputs: (N, S, S, 3) uint8, and where the net takes metadata (N, M) float32."""

PROBABILITIES_OUTPUT, LOGITS_OUTPUT, FEATURES_OUTPUT = "probabilities", "logits", "features"
"""Names of the outputs: (N, K), the mean over the views; (N, V, K), of each view; (N, C), of the first view."""

OUTPUTS = (PROBABILITIES_OUTPUT, LOGITS_OUTPUT, FEATURES_OUTPUT)

_UNSEEN_BODIES = frozenset({"If"})
"""Operators with graphs of their own, which OpenVINO does not list with the others; no exported net has one."""


class NetOutputs(NamedTuple):
    """Logits (N, V, K) float32 of each view, and features (N, C) float32 of the first one."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]

    @property
    def probabilities(self) -> Floats:
        """The mean over the views of their softmax, (N, K) float64.

        In float64, as torch's path has it: in float32 probabilities near 1 are rounded to 1, and images that differ
        would tie.
        """
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=2, keepdims=True)
        weights = np.exp(shifted)
        return np.asarray((weights / weights.sum(axis=2, keepdims=True)).mean(axis=1), dtype=np.float64)


class Session(Protocol):
    """A net that is ready to run. Thread-safe; each call computes on one core."""

    def __call__(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NetOutputs:
        """Score resized pixels (N, S, S, 3) uint8; metadata: encoded, (N, M), of a net that takes them."""
        ...


class OnnxRuntimeSession:
    """A `Session` of an ONNX file. content: its bytes, which were verified; () = the file is read."""

    def __init__(self, path: Path, *, content: Sequence[bytes] = ()) -> None:
        onnxruntime = load_onnxruntime()
        if content:
            _check_onnx(path, content[0])
        options = onnxruntime.SessionOptions()
        # One thread a call: callers run several batches at once, and a batch's numbers must not depend on how many.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors alone; its warnings are about its own optimisation
        try:
            self._session = onnxruntime.InferenceSession(
                content[0] if content else str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _unreadable(path, "ONNX Runtime", error) from error
        _check_outputs(path, [output.name for output in self._session.get_outputs()])

    def __call__(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NetOutputs:
        """Score resized pixels, as `Session` says."""
        try:
            logits, features = self._session.run([LOGITS_OUTPUT, FEATURES_OUTPUT], _inputs(pixels, metadata))
        except Exception as error:  # its exceptions have no common class
            raise _failed("ONNX Runtime", len(pixels), error) from error
        return NetOutputs(logits, features)


@cache
def openvino_core() -> Any:
    """Return the process's core of OpenVINO, with its plugin for processors loaded.

    The plugin gives the thread that loads it a stack for signal handlers, and frees that stack when the last user of
    the plugin goes. Seen with OpenVINO 2026.4: where another thread was that last user, the next signal that Python
    handles, Ctrl-C or the end of a child, killed the process by SIGSEGV. So a thread that ends at once loads the
    plugin, and the core stays as long as the process.
    """
    core = load_openvino().Core()

    def load_plugin() -> None:
        with suppress(RuntimeError):  # said again, with the file's name, where a net is compiled
            core.get_property("CPU", "FULL_DEVICE_NAME")

    loading = threading.Thread(target=load_plugin)
    loading.start()
    loading.join()
    return core


class OpenVinoSession:
    """A `Session` of an OpenVINO (.xml beside .bin) or ONNX file.

    n_threads: calls that run at once. content: the bytes of its files, which were verified; () = these are read.
    """

    def __init__(self, path: Path, *, n_threads: int = 0, content: Sequence[bytes] = ()) -> None:
        streams = n_threads or cpu_count()
        settings = {
            # The default is bfloat16 where the processor has it: probabilities would differ by a hundredth.
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams,  # one thread a call
            "ENABLE_CPU_PINNING": False,  # others decode images on the same cores
        }  # fmt: skip
        try:
            core = openvino_core()
            model = core.read_model(*content) if content else core.read_model(str(path))
            _check_operators(path, {operator.get_type_name() for operator in model.get_ops()}, _UNSEEN_BODIES)
            self._net = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise _unreadable(path, "OpenVINO", error) from error
        _check_outputs(path, [name for output in self._net.outputs for name in output.get_names()])
        self._requests = threading.local()

    def __call__(self, pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NetOutputs:
        """Score resized pixels, as `Session` says."""
        request: Any = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._net.create_infer_request()
        try:
            outputs = request.infer(_inputs(pixels, metadata), share_inputs=True)
        except RuntimeError as error:
            raise _failed("OpenVINO", len(pixels), error) from error
        # Copies: the next call of this thread writes into the same memory.
        return NetOutputs(outputs[LOGITS_OUTPUT].copy(), outputs[FEATURES_OUTPUT].copy())


def _inputs(pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {PIXELS_INPUT: np.ascontiguousarray(pixels)}
    return inputs if metadata is None else {**inputs, METADATA_INPUT: np.ascontiguousarray(metadata)}


def _check_onnx(path: Path, content: bytes) -> None:
    """Raise `UntrustedError` for bytes that are no ONNX file, and for one whose operators may never end."""
    try:
        operators = onnx_operators(content)
    except ValueError as error:
        raise _unreadable(path, "ONNX Runtime", error) from error
    _check_operators(path, operators)


def _check_operators(path: Path, operators: Collection[str], others: Collection[str] = ()) -> None:
    """Raise `UntrustedError` for operators that repeat a graph. others: further ones that are refused."""
    if endless := sorted(ENDLESS_OPERATORS.union(others).intersection(operators)):
        raise UntrustedError(
            f"{path}: holds {', '.join(endless)}, which may run for ever and which no exported net has",
            outcome="nothing was predicted",
            remedy="export the model again",
        )


def _check_outputs(path: Path, names: Sequence[str]) -> None:
    """Raise `UntrustedError` for a net without the outputs that are read."""
    if absent := [name for name in OUTPUTS if name not in names]:
        raise UntrustedError(
            f"{path}: the net has no output {' and no '.join(absent)}",
            outcome="nothing was predicted",
            remedy="export the model again",
        )


def _unreadable(path: Path, engine: str, error: Exception) -> UntrustedError:
    return UntrustedError(
        f"{path}: {engine} cannot load it: {' '.join(str(error).split())[:300]}",
        outcome="nothing was predicted",
        remedy="export the model again with the versions that are installed here, or score images with torch: "
        "`dermkit predict MODEL IMAGES --out DIR`",
    )


def _failed(engine: str, n_images: int, error: Exception) -> ResourceError:
    return ResourceError(
        f"{engine} failed on {n_images} images: {' '.join(str(error).split())[:300]}",
        remedy="a smaller --batch-size or fewer --workers where memory ran out, or score images with torch: `dermkit "
        "predict MODEL IMAGES --out DIR`",
    )
