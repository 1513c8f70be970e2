"""What a lesson does with a server, and says at each step; tests kill it meanwhile.

`python tests/faults/kernel.py own|shared` ends with 0, or with the error that it met.
"""

import sys
import time

import numpy as np
import tritonclient.http as httpclient

from helpers import server
from helpers.repository import REPOSITORY

BUSY_S = 0.5
PATIENCE_S = 5  # with an answer that takes milliseconds


def as_input(name: str, values: np.ndarray) -> httpclient.InferInput:
    """Return an input with these numbers."""
    tensor = httpclient.InferInput(name, values.shape, "INT32")
    return tensor.set_data_from_numpy(values)


def check_sums(triton: server.Triton, seconds: float = 0) -> None:
    """Ask for sums and differences of numbers, at least once, and check each."""
    deadline = time.monotonic() + seconds
    numbers = np.random.default_rng()
    client = httpclient.InferenceServerClient(triton.http, network_timeout=PATIENCE_S)
    with client:
        while True:
            a, b = numbers.integers(-1000, 1000, (2, 1, 16), np.int32)
            inputs = [as_input("INPUT0", a), as_input("INPUT1", b)]
            answer = client.infer("simple", inputs)
            assert (answer.as_numpy("OUTPUT0") == a + b).all()
            assert (answer.as_numpy("OUTPUT1") == a - b).all()
            if time.monotonic() >= deadline:
                break


def step(name: str) -> None:
    """Say what comes now."""
    print(f"step {name}", flush=True)


def main(kind: str) -> None:
    """Start, load, infer and stop; the shared server has its models already."""
    step("start")
    if kind == "shared":
        triton = server.connect()
    else:
        triton = server.start(REPOSITORY, model_control_mode="explicit")
        step("load")
        client = httpclient.InferenceServerClient(triton.http, network_timeout=30)
        with client:
            client.load_model("simple")
    step("inference")
    check_sums(triton, BUSY_S)
    step("stop")
    triton.stop()


if __name__ == "__main__":
    main(sys.argv[1])
