"""Tries Triton's doors from outside, as a stranger would."""

import json
import socket
import time
from urllib.request import Request, urlopen

import numpy as np
import psutil
from tritonclient.utils import InferenceServerException

# Triton's groups of calls, and a call of each, which both clients name alike.
DOORS = {
    "health": ["is_server_ready"],
    "metadata": ["get_server_metadata"],
    "inference": ["infer", "simple"],
    "model-config": ["get_model_config", "simple"],
    "model-repository": ["get_model_repository_index"],
    "shared-memory": ["get_system_shared_memory_status"],
    "statistics": ["get_inference_statistics"],
    "trace": ["get_trace_settings"],
    "logging": ["get_log_settings"],
}
PREFIX = "triton-grpc-protocol-"  # gRPC wants it before the name of a header


def numbers(api):
    """Return the inputs of the model `simple`, all zeros, for one of the clients."""
    zeros = np.zeros((1, 16), np.int32)
    both = [api.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    return [tensor.set_data_from_numpy(zeros) for tensor in both]


def knock(api, address, headers=None, **tls):
    """Return {door: open, closed or the status of the refusal} of a server."""
    found = {}
    with api.InferenceServerClient(address, **tls) as client:
        for door, (method, *words) in DOORS.items():
            if method == "infer":
                words += [numbers(api)]
            try:
                said = getattr(client, method)(*words, headers=dict(headers or {}))
                found[door] = "closed" if said is False else "open"
            except InferenceServerException as error:
                found[door] = error.status().removeprefix("StatusCode.")
    return found


def show(http, grpc):
    """Print what `knock` found, a door a line."""
    for door in DOORS:
        print(f"{door:17} {http[door]:7} {grpc[door]}")


def reachable(host, address):
    """Return whether something listens at this host on the port of an address."""
    try:
        socket.create_connection((host, int(address.rpartition(":")[2])), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def listener(address):
    """Return the number of the process that listens at an address of this machine."""
    port = int(address.rpartition(":")[2])
    found = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
    return next(c.pid for c in found if c.laddr.port == port)


def gone(address):
    """Return whether nothing listens at an address of this machine, within a minute."""
    deadline = time.monotonic() + 60
    while reachable("127.0.0.1", address):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def post(server, size, headers=None, **how):
    """Send the model `echo` a letter of so many bytes, in JSON; return the status."""
    url = f"{server}/v2/models/echo/infer"
    words = {
        "name": "WORDS",
        "datatype": "BYTES",
        "shape": [1, 1],
        "data": ["x" * size],
    }
    body = json.dumps({"inputs": [words]}).encode()
    try:
        with urlopen(Request(url, body, headers or {}), **how) as answer:
            return answer.status
    except OSError as error:
        return getattr(error, "code", "connection closed")
