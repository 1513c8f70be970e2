"""The bytes of a request in each server's own dialect, and what an answer says.

All carry the same tensor, float32 [1, 3, 224, 224], and all bring the 1000 scores back
as raw bytes: nobody is made to speak JSON where it can take a binary body.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MODEL = "efficientnet_lite0"


class Question(NamedTuple):
    """Which model is asked: each input gets the same tensor, one output is wanted."""

    model: str = MODEL
    inputs: Sequence[str] = ("image",)
    output: str = "logits"


CLASSIFY = Question()
TYPES = {"float32": "FP32", "int32": "INT32"}
# What a dialect calls its way in; a plain body is the tensor's bytes and no more.
PATHS = {
    "plain": "/infer",
    "torchserve": f"/predictions/{MODEL}",
}
BINARY = {"binary_data": True}


def post(
    port: int,
    path: str,
    body: bytes,
    headers: dict[str, int] | None = None,
    kind: str = "application/octet-stream",
) -> bytes:
    """Return an HTTP request with this body."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def v2_header(tensor: np.ndarray, parameters: dict[str, Any], asked: Question) -> bytes:
    """Return the JSON part of a V2 request whose tensors come beside it."""
    described = {
        "shape": list(tensor.shape),
        "datatype": TYPES[tensor.dtype.name],
        "parameters": parameters,
    }
    header = {
        "inputs": [{"name": name, **described} for name in asked.inputs],
        "outputs": [{"name": asked.output, "parameters": BINARY}],
    }
    return json.dumps(header).encode()


def request(
    dialect: str, port: int, tensor: np.ndarray, asked: Question = CLASSIFY
) -> bytes:
    """Return the whole HTTP request that asks about a tensor."""
    if dialect != "v2":
        return post(port, PATHS[dialect], tensor.tobytes())
    header = v2_header(tensor, {"binary_data_size": tensor.nbytes}, asked)
    length = {"Inference-Header-Content-Length": len(header)}
    body = header + tensor.tobytes() * len(asked.inputs)
    return post(port, f"/v2/models/{asked.model}/infer", body, length)


def shared(
    port: int, region: str, tensor: np.ndarray, asked: Question = CLASSIFY
) -> bytes:
    """Return the V2 request for a tensor that lies in a registered region."""
    place = {
        "shared_memory_region": region,
        "shared_memory_byte_size": tensor.nbytes,
    }
    header = v2_header(tensor, place, asked)
    path = f"/v2/models/{asked.model}/infer"
    return post(port, path, header, kind="application/json")


def answer(dialect: str, headers: dict[str, str], body: memoryview) -> memoryview:
    """Return the bytes of the one output that an HTTP response's body holds."""
    if dialect == "v2":
        return body[int(headers["inference-header-content-length"]) :]
    return body


def message(tensor: np.ndarray, asked: Question = CLASSIFY) -> bytes:
    """Return the gRPC request for a tensor, serialised."""
    from tritonclient.grpc import service_pb2

    found = service_pb2.ModelInferRequest(model_name=asked.model)
    for name in asked.inputs:
        found.inputs.add(
            name=name, datatype=TYPES[tensor.dtype.name], shape=tensor.shape
        )
        found.raw_input_contents.append(tensor.tobytes())
    found.outputs.add(name=asked.output)
    return found.SerializeToString()


def from_message(data: bytes) -> bytes:
    """Return the bytes of the one output that a gRPC response holds."""
    from tritonclient.grpc import service_pb2

    return service_pb2.ModelInferResponse.FromString(data).raw_output_contents[0]


def unchunk(data: bytes) -> bytes:
    """Join the chunks of a body whose length was not known beforehand."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
    return body
