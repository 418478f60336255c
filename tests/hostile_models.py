"""Model folders that somebody made to harm: ways to spoil a good one, with checksums that fit unless a case says so.

A case changes a copy of a model folder (`torch`) or of one that was exported (`onnx`). Code that runs while it is
loaded would create `CANARY` in the folder that the process runs in.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dermkit.models.checksums import CHECKSUM_FILE, write_checksums

CANARY = "executed"
WEIGHTS, NET, FEATURES = "member-0.safetensors", "net-0.onnx", "training_features-0.npz"
Spoil = Callable[[Path], object]


class Case(NamedTuple):
    """A way to spoil a folder. is_listed: whether its checksums are written anew afterwards."""

    name: str
    kind: str
    spoil: Spoil
    is_listed: bool = True

    def make(self, folder: Path) -> None:
        """Spoil a copy of a good folder."""
        self.spoil(folder)
        if self.is_listed:
            write_checksums(folder)


class _Harm:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (CANARY, "w"))


HARM = pickle.dumps(_Harm())


# Parts -----------------------------------------------------------------------------------------------------------


def _edit(name: str, *places: Any, value: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        target = content
        for place in places[:-1]:
            target = target[place]
        target[places[-1]] = value
        (folder / name).write_text(json.dumps(content))

    return spoil


def _write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def _flip(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def _list_line(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / CHECKSUM_FILE).open("a") as stream:
            stream.write(f"{'0' * 64}  {name}\n")

    return spoil


def _safetensors(header: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensors(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Return what changes tensors of the weights: name -> array."""

    def spoil(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


def _first_weight(tensors: Mapping[str, Any]) -> str:
    return next(name for name, value in tensors.items() if value.ndim == 4)


def _fill(value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[_first_weight(tensors)].flat[0] = value

    return change


def _turn(tensors: dict[str, Any]) -> None:
    name = _first_weight(tensors)
    tensors[name] = np.ascontiguousarray(tensors[name].transpose(1, 0, 2, 3))


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def _write_npz_bomb(folder: Path) -> None:
    """Write an archive of some megabytes whose one array says that it is a gigabyte of zeros, and is."""
    block = bytes(2**24)
    with (
        zipfile.ZipFile(folder / FEATURES, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("mean.npy", "w", force_zip64=True) as member,
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**27,)})
        member.write(header.getvalue())
        for _ in range(2**30 // len(block)):
            member.write(block)


def _npz_pickle() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, labels=np.array([_Harm()], dtype=object))
    return stream.getvalue()


def _link(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        outside = folder.parent / "outside.bin"
        outside.write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def _pipe(folder: Path) -> None:
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")


def _sparse(name: str, n_bytes: int) -> Spoil:
    return lambda folder: os.truncate(folder / name, n_bytes)


# Nets in ONNX files ----------------------------------------------------------------------------------------------


def _graph(change: Callable[[Any], object]) -> Spoil:
    """Return what changes the ONNX document of a net."""

    def spoil(folder: Path) -> None:
        import onnx

        model = onnx.load_from_string((folder / NET).read_bytes())
        change(model)
        (folder / NET).write_bytes(model.SerializeToString())

    return spoil


def _largest(model: Any) -> Any:
    return max(model.graph.initializer, key=lambda one: len(one.raw_data))


def _external(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = _largest(model)
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def _nan_tensor(model: Any) -> None:
    tensor = _largest(model)
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


def _huge_tensor(model: Any) -> None:
    tensor = _largest(model)
    del tensor.dims[:]
    tensor.dims.extend([2**31, 2**31])


def _foreign_operator(model: Any) -> None:
    model.graph.node[0].domain, model.graph.node[0].op_type = "evil", "Run"


def _two_classes(model: Any) -> None:
    import onnx

    for name in ("logits", "probabilities"):
        node = next(one for one in model.graph.node if name in one.output)
        place = list(node.output).index(name)
        node.output[place] = f"{name}_all"
        values = {"starts": [0], "ends": [2], "axes": [-1]}
        for key, value in values.items():
            array = np.array(value, np.int64)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{key}"))
        inputs = [f"{name}_all", *(f"{name}_{key}" for key in values)]
        model.graph.node.append(onnx.helper.make_node("Slice", inputs, [name]))


def _no_logits(model: Any) -> None:
    for output in list(model.graph.output):
        if output.name == "logits":
            model.graph.output.remove(output)


def _flat_logits(model: Any) -> None:
    """Let the logits be (N, V x K)."""
    import onnx

    node = next(one for one in model.graph.node if "logits" in one.output)
    node.output[list(node.output).index("logits")] = "logits_of_views"
    model.graph.node.append(onnx.helper.make_node("Flatten", ["logits_of_views"], ["logits"]))
    output = next(one for one in model.graph.output if one.name == "logits")
    output.CopyFrom(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None))


def _endless(model: Any) -> None:
    """Let a loop of 2^62 steps stand before the features."""
    import onnx

    make, floats, one = onnx.helper, onnx.TensorProto.FLOAT, onnx.numpy_helper.from_array(np.float32(1), "one")
    value = make.make_tensor_value_info
    body = make.make_graph(
        [make.make_node("Identity", ["on"], ["still_on"]), make.make_node("Mul", ["x", "one"], ["y"])], "body",
        [value("i", onnx.TensorProto.INT64, []), value("on", onnx.TensorProto.BOOL, []), value("x", floats, None)],
        [value("still_on", onnx.TensorProto.BOOL, []), value("y", floats, None)], [one],
    )  # fmt: skip
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = "features_before" if name == "features" else name
    for array, name in ((np.array(2**62), "steps"), (np.array(True), "start")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    inputs = ["steps", "start", "features_before"]
    model.graph.node.append(make.make_node("Loop", inputs, ["features"], body=body))


def _endless_in_a_branch(model: Any) -> None:
    """Hide the loop in both branches of an If."""
    import onnx

    _endless(model)
    loop = model.graph.node.pop()
    make = onnx.helper
    branches = []
    for name in ("then", "else"):
        inner = onnx.NodeProto()
        inner.CopyFrom(loop)
        inner.output[0] = f"features_{name}"
        output = make.make_tensor_value_info(inner.output[0], onnx.TensorProto.FLOAT, None)
        branches.append(make.make_graph([inner], name, [], [output]))
    model.graph.node.append(
        make.make_node("If", ["start"], ["features"], then_branch=branches[0], else_branch=branches[1])
    )


CASES = (
    # Bytes that are not those of the list
    Case("a bit of the weights", "torch", _flip(WEIGHTS), False),
    Case("a bit of the card", "torch", _flip("model.json"), False),
    Case("a bit of an exported net", "onnx", _flip(NET), False),
    Case("no list", "torch", lambda folder: (folder / CHECKSUM_FILE).unlink(), False),
    Case("a list of a megabyte too much", "torch", _write(CHECKSUM_FILE, b"0" * (2**20 + 1)), False),
    # Paths
    Case("a name that leads out", "torch", _list_line("../outside"), False),
    Case("a name from the root", "torch", _list_line("/etc/passwd"), False),
    Case("a name with a NUL", "torch", _list_line("a\0b"), False),
    Case("a link out", "torch", _link(WEIGHTS, "../outside.bin")),
    Case("a link to a device", "torch", _link("seen.csv", "/dev/zero"), False),
    Case("a link to itself", "torch", _link("seen.csv", "seen.csv"), False),
    Case("a pipe", "torch", _pipe, False),
    Case("the weights' name leads out", "torch", _edit("model.json", "members", 0, "file", value="../outside.bin")),
    # Code
    Case("weights as a pickle", "torch", _write(WEIGHTS, HARM)),
    Case("weights as torch saves them", "torch", _write(WEIGHTS, _zip(archive__data__pkl=HARM))),
    Case("training features as a pickle", "torch", _write("training_features-0.safetensors", HARM)),
    Case("an array of objects", "onnx", _write(FEATURES, _npz_pickle())),
    Case("an exported net as a pickle", "onnx", _write(NET, HARM)),
    # Sizes
    Case("weights of a hundred gigabytes", "torch", _sparse(WEIGHTS, 100 * 2**30), False),
    Case("weights of twelve gigabytes", "torch", _sparse(WEIGHTS, 12 * 2**30), False),
    Case("a header of exabytes", "torch", _write(WEIGHTS, struct.pack("<Q", 2**62) + b"{}")),
    Case("a tensor of terabytes", "torch", _write(WEIGHTS, _safetensors(
        {"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}))),
    Case("an archive that unpacks to a gigabyte", "onnx", _write_npz_bomb),
    Case("a card nested a hundred thousand deep", "torch", _write("model.json", b"[" * 100_000)),
    Case("images of a billion pixels a side", "torch",
         _edit("model.json", "members", 0, "preprocessing", "size", value=10**9)),
    Case("an exported tensor of exabytes", "onnx", _graph(_huge_tensor)),
    # Tensors
    Case("tensors that overlap", "torch", _write(WEIGHTS, _safetensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)))),
    Case("a weight that is no number", "torch", _tensors(_fill(np.nan))),
    Case("an infinite weight", "torch", _tensors(_fill(np.inf))),
    Case("a tensor of another shape", "torch", _tensors(_turn)),
    Case("a tensor too few", "torch", _tensors(lambda tensors: tensors.pop(_first_weight(tensors)))),
    Case("a tensor too many", "torch", _tensors(lambda tensors: tensors.update(more=np.zeros(3, np.float32)))),
    Case("whole numbers for weights", "torch", _tensors(
        lambda tensors: tensors.update({name: value.astype(np.int8) for name, value in tensors.items()}))),
    Case("exported weights that are no numbers", "onnx", _graph(_nan_tensor)),
    # What the documents say
    Case("a card of the future", "torch", _edit("model.json", "format", value=999)),
    Case("an export of the future", "onnx", _edit("export.json", "format", value=999)),
    Case("a class too few", "torch", _edit("model.json", "classes", value=[
        {"name": name, "diagnosis": "", "malignancy": "benign"} for name in "ab"])),
    Case("one class twice", "torch", _edit("model.json", "classes", value=3 * [
        {"name": "a", "diagnosis": "", "malignancy": "benign"}])),
    Case("a net of another name", "torch", _edit("model.json", "members", 0, "spec", "backbone", value="../../evil")),
    Case("a net from the network", "torch", _edit("model.json", "members", 0, "spec", "backbone",
                                                  value="hf-hub:evil/model")),
    Case("no JSON", "torch", _write("model.json", b"\xff\xfe{}")),
    Case("numbers that JSON lacks", "torch", _edit("model.json", "members", 0, "weight", value=float("nan"))),
    # Graphs
    Case("external data outside", "onnx", _graph(_external("../../../etc/passwd"))),
    Case("external data beside the net", "onnx", _graph(_external("model.json"))),
    Case("an operator of somebody's library", "onnx", _graph(_foreign_operator)),
    Case("a net of two classes", "onnx", _graph(_two_classes)),
    Case("a loop without end", "onnx", _graph(_endless)),
    Case("a loop without end in a branch", "onnx", _graph(_endless_in_a_branch)),
    Case("a net without logits", "onnx", _graph(_no_logits)),
    Case("logits of another shape", "onnx", _graph(_flat_logits)),
)  # fmt: skip
