"""A net in ONNX with the weights and activations of its convolutions and products in 8 bits (static quantisation).

By ONNX Runtime's own tool; the ranges of activations come from images. OpenVINO reads the result too. Without torch.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dermkit.errors import DermkitError, UsageError
from dermkit.files import output_errors
from dermkit.models.engines.packages import load_onnx, load_onnxruntime

_QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operators whose inputs become 8 bits: nearly all of the time goes there. Normalisation and softmax stay float32."""


def quantise(content: bytes, batches: Iterable[Mapping[str, NDArray[Any]]]) -> bytes:
    """Return an ONNX net in int8. content: in float32. batches: inputs of the net, from which the ranges are taken.

    Raises `UsageError` where the tool cannot quantise it, `OutputError` where the temporary folder cannot be written.
    """
    load_onnxruntime()
    onnx = load_onnx()
    from onnxruntime import quantization

    float_net = onnx.load_from_string(content)
    with output_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as work:
        source, prepared, result = (Path(work) / name for name in ("float32.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(content)
        try:
            # Folds batch norms first: each would otherwise stay a float32 operator between two of 8 bits.
            quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared), str(result), _reader(quantization, batches), quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED), per_channel=True,
                activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        except (DermkitError, MemoryError, OSError):  # of the images, the memory and the disk, not of the net
            raise
        except Exception as error:  # whatever its passes over the graph do
            raise UsageError(
                f"the net cannot be written in int8: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                outcome="nothing was written",
                remedy="export it without --int8",
            ) from error
        net = onnx.load(str(result))
    del net.metadata_props[:]
    net.metadata_props.extend(float_net.metadata_props)  # the tool drops them
    net.doc_string = float_net.doc_string
    return bytes(net.SerializeToString())


def _reader(quantization: Any, batches: Iterable[Mapping[str, NDArray[Any]]]) -> Any:
    """Return what hands the tool one batch after the other, then None."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # of a package without types
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._batches, None)
            return None if batch is None else dict(batch)

    return Reader()
