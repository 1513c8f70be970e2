"""Requests that nobody should send: strategies that draw them, and a way to send them.

Each is the good request below with something spoilt. Where what is spoilt turns out to
be harmless, such as a field that Triton doesn't know, the answer has to be right.
"""

import copy
import gzip
import http.client
import json
import math
import socket
import zlib

import grpc
import numpy as np
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from helpers import server

PATIENCE_S = 20
A = np.arange(16, dtype=np.int32)
B = np.full(16, 100, np.int32)
INFER = "POST /v2/models/simple/infer"


def as_input(name: str, values: np.ndarray) -> dict:
    return {
        "name": name,
        "shape": [1, 16],
        "datatype": "INT32",
        "data": values.tolist(),
    }


GOOD = {
    "id": "good",
    "parameters": {"priority": 0},
    "inputs": [as_input("INPUT0", A), as_input("INPUT1", B)],
    "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": False}}],
}
NUMBERS = [-1, 0, 2**31, 2**63, 2**64, 1.5, 1e300]
WRONG = st.sampled_from([None, True, *NUMBERS, "", "x", "\0", "9" * 400, [], {}])
JUNK = st.recursive(
    WRONG | st.text(max_size=8) | st.integers() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
SIZES = st.sampled_from([-(2**63), -1, 0, 1, 15, 17, 2**31, 2**32, 2**62, 2**63 - 1])


# --- HTTP --------------------------------------------------------------------------


def message(start: str, headers: dict[str, object], body: bytes) -> bytes:
    """Return an HTTP request as it goes over the wire."""
    lines = {"Host": "127.0.0.1", "Content-Length": len(body), **headers}
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{start} HTTP/1.1\r\n{fields}\r\n".encode() + body


def places(node: object, path: tuple = ()) -> list[tuple]:
    """Return the paths to all that is in a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def is_told_apart(request: dict) -> bool:
    """Return whether Triton 2.51 can be trusted with this document.

    test_malformed.py shows what it does with the others: a shape in JSON that it makes
    room for before it looks, or that makes its count of bytes overflow, and a number
    that is larger than its type.
    """
    tensors = request.get("inputs")
    for tensor in tensors if isinstance(tensors, list) else []:
        shape, data = (
            tensor.get(field) if isinstance(tensor, dict) else None
            for field in ("shape", "data")
        )
        sizes = [size for size in flat(shape) if isinstance(size, int)]
        if not 0 < math.prod(abs(size) for size in sizes) < 2**20:
            return False
        numbers = [n for n in flat(data) if type(n) is int]
        if any(not -(2**31) <= n < 2**31 for n in numbers):
            return False
    return True


@st.composite
def spoilt_json(draw: st.DrawFn) -> dict:
    """Put junk in one place of the good request, or take a place away, or add one."""
    request = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(places(request)))
        node = request
        for key in path:
            node = node[key]
        if draw(st.integers(0, 3)) == 0:
            del node[last]
        elif draw(st.integers(0, 3)) == 0 and isinstance(node, dict):
            node[draw(st.text(max_size=9))] = draw(JUNK)
        elif last == "shape":
            node[last] = draw(st.lists(SIZES, max_size=4))
        else:
            node[last] = draw(JUNK)
        if not request:
            break
    return request


@st.composite
def spoilt_text(draw: st.DrawFn) -> bytes:
    """Cut the good request's JSON short, or change some of its bytes."""
    text = bytearray(json.dumps(GOOD).encode())
    if draw(st.booleans()):
        return bytes(text[: draw(st.integers(0, len(text) - 1))])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text) - 1))
        text[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(text)


@st.composite
def spoilt_binary(draw: st.DrawFn) -> bytes:
    """Send tensors in binary with sizes, lengths or bytes that don't fit."""
    request = copy.deepcopy(GOOD)
    for tensor in request["inputs"]:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": 64}
    body = A.tobytes() + B.tobytes()
    what = draw(st.sampled_from(["size", "shape", "datatype", "body", "header"]))
    tensor = draw(st.sampled_from(request["inputs"]))
    header = None
    if what == "size":
        tensor["parameters"]["binary_data_size"] = draw(SIZES | WRONG)
    elif what == "shape":
        tensor["shape"] = draw(st.lists(SIZES, max_size=4))
    elif what == "datatype":
        kinds = ["BOOL", "INT8", "UINT64", "FP16", "FP64", "BYTES", "BF16", "X", ""]
        tensor["datatype"] = draw(st.sampled_from(kinds))
    elif what == "body":
        body = draw(st.just(body[: draw(st.integers(0, 127))]) | st.just(body + b"?"))
    text = json.dumps(request).encode()
    if what == "header":
        header = draw(SIZES | WRONG | st.integers(0, len(text) + 200))
    headers = {
        "Inference-Header-Content-Length": len(text) if header is None else header
    }
    return message(INFER, headers, text + body)


@st.composite
def spoilt_encoding(draw: st.DrawFn) -> bytes:
    """Say that the body is packed in a way in which it isn't, or isn't whole."""
    text = json.dumps(GOOD).encode()
    said = draw(st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"]))
    packed = draw(st.sampled_from([text, gzip.compress(text), zlib.compress(text)]))
    cut = packed[: draw(st.integers(0, len(packed)))]
    return message(INFER, {"Content-Encoding": said}, cut)


@st.composite
def spoilt_frame(draw: st.DrawFn) -> bytes:
    """Spoil the request line, or a header that says how long the body is."""
    text = json.dumps(GOOD).encode()
    start = draw(
        st.just(INFER)
        | st.sampled_from(
            [
                "GET /v2/models/simple/infer",
                "PUT /v2/models/simple/infer",
                "POST /v2/models/nobody/infer",
                "POST /v2/models/simple/versions/9/infer",
                "POST /v2/models/simple/versions/-1/infer",
                "POST /v2/models/../infer",
                "POST /v2/repository/models/simple/load",
                "POST /v2/systemsharedmemory/region/x/register",
                "POST " + "/v2" * 3000,
                "",
                "POST",
            ]
        )
    )
    length = st.sampled_from([-1, 0, 5, len(text) - 1, len(text) + 1, 2**63, "x", ""])
    headers = draw(
        st.fixed_dictionaries({"Content-Length": length})
        | st.just({"Transfer-Encoding": "chunked"})
        | st.just({"X": "x" * 100_000})
    )
    return message(start, headers, text)


def spoilt_http() -> st.SearchStrategy[bytes]:
    """Return all ways to spoil a request over HTTP."""
    texts = spoilt_json().filter(is_told_apart).map(json.dumps).map(str.encode)
    bodies = texts | spoilt_text()
    return st.one_of(
        bodies.map(lambda body: message(INFER, {}, body)),
        spoilt_binary(),
        spoilt_encoding(),
        spoilt_frame(),
        st.binary(min_size=1, max_size=300),
    )


def flat(node: object) -> list:
    """Return what is in nested lists, in order, as Triton reads them."""
    if not isinstance(node, list):
        return [node]
    return [item for inner in node for item in flat(inner)]


def asked_for(request: bytes) -> dict[str, list[int]]:
    """Return the right outputs for a request with numbers in JSON, or the good ones."""
    values = {"INPUT0": A.tolist(), "INPUT1": B.tolist()}
    body = request.partition(b"\r\n\r\n")[2]
    if not body.lstrip().startswith(b"{"):  # packed, and yet whole enough
        return asked_for(message(INFER, {}, json.dumps(GOOD).encode()))
    document, _ = json.JSONDecoder().raw_decode(body.decode(errors="replace").lstrip())
    for tensor in document["inputs"]:
        if "data" in tensor:
            values[tensor["name"]] = flat(tensor["data"])
    a, b = (np.array(values[name]) for name in ("INPUT0", "INPUT1"))
    return {"OUTPUT0": (a + b).tolist(), "OUTPUT1": (a - b).tolist()}


def answered(body: bytes) -> list[tuple[str, list[int]]]:
    """Return an answer's outputs, be they in its JSON or, asked for so, behind it."""
    document, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    found = []
    for output in document["outputs"]:
        numbers = output.get("data")
        if size := output.get("parameters", {}).get("binary_data_size"):
            raw, end = body[end : end + size], end + size
            numbers = np.frombuffer(raw, np.int32).tolist()
        found.append((output["name"], numbers))
    return found


def send(triton: server.Triton, request: bytes) -> tuple[int | None, bytes]:
    """Send bytes to the HTTP port; return status and body, or None where it hangs up.

    Our side is closed after the request, so a server that wants more gets no more.
    """
    host, port = triton.http.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as line:
        try:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(line)
            answer.begin()
            return answer.status, answer.read()
        except TimeoutError:
            raise
        except (http.client.HTTPException, OSError):
            return None, b""


# --- gRPC --------------------------------------------------------------------------


def good_message() -> service_pb2.ModelInferRequest:
    """Return the good request, its tensors as bytes."""
    request = service_pb2.ModelInferRequest(model_name="simple", id="good")
    for name, values in (("INPUT0", A), ("INPUT1", B)):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(values.tobytes())
    return request


@st.composite
def spoilt_message(draw: st.DrawFn) -> bytes:
    """Spoil one field of the good message."""
    request = good_message()
    tensor = draw(st.sampled_from(list(request.inputs)))
    what = draw(st.sampled_from(["names", "shape", "raw", "typed", "said", "output"]))
    if what == "names":
        node, field = draw(
            st.sampled_from(
                [
                    (request, "model_name"),
                    (request, "model_version"),
                    (tensor, "name"),
                    (tensor, "datatype"),
                ]
            )
        )
        setattr(node, field, draw(st.text(max_size=8) | st.just("9" * 30)))
    elif what == "shape":
        tensor.shape[:] = draw(st.lists(SIZES, max_size=4))
    elif what == "raw":
        number = draw(st.integers(0, 1))
        request.raw_input_contents[number] = draw(st.binary(max_size=63))
    elif what == "typed":
        del request.raw_input_contents[draw(st.integers(0, 1)) :]
        tensor.contents.int_contents.extend(draw(st.lists(st.integers(0, 9))))
        tensor.contents.fp32_contents.extend(draw(st.lists(st.just(1.5), max_size=2)))
    elif what == "said":
        names = ["shared_memory_region", "shared_memory_byte_size", "sequence_id", "x"]
        value = tensor.parameters[draw(st.sampled_from(names))]
        if draw(st.booleans()):
            value.int64_param = draw(SIZES)
        else:
            value.string_param = draw(st.text(max_size=5))
    else:
        output = request.outputs.add(name=draw(st.sampled_from(["OUTPUT0", "", "x"])))
        output.parameters["classification"].int64_param = draw(SIZES)
    return request.SerializeToString()


@st.composite
def spoilt_bytes(draw: st.DrawFn) -> bytes:
    """Cut the good message short, or change one of its bytes."""
    text = bytearray(good_message().SerializeToString())
    at = draw(st.integers(0, len(text) - 1))
    if draw(st.booleans()):
        return bytes(text[:at])
    text[at] = draw(st.integers(0, 255))
    return bytes(text)


def spoilt_grpc() -> st.SearchStrategy[bytes]:
    """Return all ways to spoil a request over gRPC."""
    return spoilt_message() | spoilt_bytes() | st.binary(max_size=200)


def is_right(request: bytes, answer: bytes) -> bool:
    """Return whether an answer holds the sums and differences of its request."""
    sent = service_pb2.ModelInferRequest.FromString(request)
    values = {
        tensor.name: np.frombuffer(raw, np.int32)
        for tensor, raw in zip(sent.inputs, sent.raw_input_contents, strict=True)
    }
    a, b = values["INPUT0"], values["INPUT1"]
    found = service_pb2.ModelInferResponse.FromString(answer)
    for output, raw in zip(found.outputs, found.raw_output_contents, strict=True):
        right = {"OUTPUT0": a + b, "OUTPUT1": a - b}[output.name]
        if output.datatype == "INT32":
            told_right = raw == right.tobytes()
        else:  # classes, as in 115.000000:15
            pairs = [t.split(b":") for t in deserialize_bytes_tensor(raw)]
            told_right = all(right[int(n)] == float(value) for value, n in pairs)
        if not told_right:
            return False
    return True


def call(channel: grpc.Channel, request: bytes) -> tuple[grpc.StatusCode, bytes]:
    """Send bytes as an inference request; return the status and the answer's bytes."""
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        return grpc.StatusCode.OK, infer(request, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return error.code(), error.details().encode()
