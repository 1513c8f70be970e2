"""Small ONNX models to serve, and the model repositories that hold them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

Shape = Sequence[str | int]
Tensor = tuple[str, str, Shape]

# Every tensor type that ONNX and NumPy share, under its name in Triton.
TYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FP16": "FLOAT16",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "STRING": "STRING",
}


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    constants: dict[str, np.ndarray] | None = None,
    ir_version: int = 8,
    opset: int = 17,
) -> bytes:
    """Return an ONNX model as the bytes of its file."""

    def declared(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, getattr(TensorProto, kind), list(shape))
            for name, kind, shape in tensors
        ]

    stored = [
        onnx.numpy_helper.from_array(array, name)
        for name, array in (constants or {}).items()
    ]
    graph = helper.make_graph(
        nodes, "graph", declared(inputs), declared(outputs), stored
    )
    return helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)]
    ).SerializeToString()


def identity(kind: str = "FLOAT", shape: Shape = ("n", 3), **versions: int) -> bytes:
    """Return a model whose output Y is its input X."""
    node = helper.make_node("Identity", ["X"], ["Y"])
    return model([node], [("X", kind, shape)], [("Y", kind, shape)], **versions)


def add(kind: str = "FLOAT", shape: Shape = ("n", 3), amount: float = 1) -> bytes:
    """Return a model whose output Y is its input X plus an amount."""
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    constants = {"amount": np.array(amount, dtype)}
    node = helper.make_node("Add", ["X", "amount"], ["Y"])
    return model([node], [("X", kind, shape)], [("Y", kind, shape)], constants)


def reshape(dims: Sequence[int], taken: Shape, given: Shape) -> bytes:
    """Return a model whose output Y has the numbers of X in another shape."""
    constants = {"dims": np.array(dims, np.int64)}
    node = helper.make_node("Reshape", ["X", "dims"], ["Y"])
    return model([node], [("X", "FLOAT", taken)], [("Y", "FLOAT", given)], constants)


def loses_rows() -> bytes:
    """Return a model whose output LOST has half as many rows as X, and SAME is X."""
    return model(
        [
            helper.make_node("Reshape", ["X", "dims"], ["LOST"]),
            helper.make_node("Identity", ["X"], ["SAME"]),
        ],
        [("X", "FLOAT", ("n", 3))],
        [("LOST", "FLOAT", ("m", 6)), ("SAME", "FLOAT", ("n", 3))],
        {"dims": np.array([-1, 6])},
    )


def counts_rows() -> bytes:
    """Return a model whose Y is X plus 1, and whose ROWS says in each row how many."""
    return model(
        [
            helper.make_node("Add", ["X", "one"], ["Y"]),
            helper.make_node("Shape", ["X"], ["rows"], end=1),
            helper.make_node("Concat", ["rows", "ones"], ["shape"], axis=0),
            helper.make_node("Expand", ["rows", "shape"], ["ROWS"]),
        ],
        [("X", "FLOAT", ("n", "m"))],
        [("Y", "FLOAT", ("n", "m")), ("ROWS", "INT64", ("n", 1))],
        {"one": np.array(1, np.float32), "ones": np.array([1])},
    )


def every_type() -> bytes:
    """Return a model with an input X_T and an equal output Y_T of every type T."""
    return model(
        [helper.make_node("Identity", [f"X_{t}"], [f"Y_{t}"]) for t in TYPES],
        [(f"X_{t}", kind, ("n", "m")) for t, kind in TYPES.items()],
        [(f"Y_{t}", kind, ("n", "m")) for t, kind in TYPES.items()],
    )


def lookup() -> bytes:
    """Return a model that fails by value: SQUARE is X times X, for X from 0 to 9.

    Its second output, SAME, is X itself, and so has no way to fail.
    """
    return model(
        [
            helper.make_node("Gather", ["squares", "X"], ["SQUARE"]),
            helper.make_node("Identity", ["X"], ["SAME"]),
        ],
        [("X", "INT64", ("n", 1))],
        [("SQUARE", "INT64", ("n", 1)), ("SAME", "INT64", ("n", 1))],
        {"squares": np.arange(10, dtype=np.int64) ** 2},
    )


def sequence(*controls: Tensor) -> bytes:
    """Return a model that passes INPUT and each of its control tensors on."""
    tensors = [("INPUT", "INT32", ("n", 1)), *controls]
    return model(
        [helper.make_node("Identity", [n], [f"{n}_SEEN"]) for n, _, _ in tensors],
        tensors,
        [(f"{name}_SEEN", kind, shape) for name, kind, shape in tensors],
    )


def running_sum(length: int = 1) -> bytes:
    """Return a model whose SUM is X plus the state that its last run left.

    The state is so many equal numbers.
    """
    x, state = ("n", 1), ("n", length)
    return model(
        [
            helper.make_node("Add", ["X", "STATE"], ["NEXT"]),
            helper.make_node("ReduceMax", ["NEXT"], ["SUM"], axes=[1]),
        ],
        [("X", "FLOAT", x), ("STATE", "FLOAT", state)],
        [("SUM", "FLOAT", x), ("NEXT", "FLOAT", state)],
    )


def store(
    repository: Path,
    name: str,
    weights: bytes | None,
    config: str | None,
    version: int = 1,
    filename: str = "model.onnx",
) -> None:
    """Put a model into a model repository; None leaves its file or its config out."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        (folder / filename).write_bytes(weights)
    if config is not None:
        (folder.parent / "config.pbtxt").write_text(config)
