"""`python -m benchmarks.same_request`: one request, two servers of the V2 protocol.

MLServer's REST speaks JSON alone, so no binary tensors; over gRPC nothing differs.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from benchmarks.servers import CACHE, SERVERS, tensors
from benchmarks.wire import MODEL

ANSWERS = CACHE / "same_request.json"


def classify_http(address: str, photo: np.ndarray) -> np.ndarray:
    """Ask over HTTP, in JSON: float32 [1, 3, 224, 224] to [1, 1000]."""
    with httpclient.InferenceServerClient(address) as client:
        image = httpclient.InferInput("image", photo.shape, "FP32")
        image.set_data_from_numpy(photo, binary_data=False)
        logits = httpclient.InferRequestedOutput("logits", binary_data=False)
        return client.infer(MODEL, [image], outputs=[logits]).as_numpy("logits")


def classify_grpc(address: str, photo: np.ndarray) -> np.ndarray:
    """Ask over gRPC: float32 [1, 3, 224, 224] to [1, 1000]."""
    with grpcclient.InferenceServerClient(address) as client:
        image = grpcclient.InferInput("image", photo.shape, "FP32")
        image.set_data_from_numpy(photo)
        return client.infer(MODEL, [image]).as_numpy("logits")


def main() -> None:
    """Start both servers in turn, and ask each the same twice."""
    path = tensors()
    with np.load(path) as file:
        photo, right = file["x"][0], file["y"][0]
    lines = []
    for name in "triton-grpc", "mlserver":
        SERVERS[name].install()
        with SERVERS[name].running(SERVERS[name].settings[0], path) as running:
            # Triton's HTTP is on the port before gRPC's, MLServer's is on the next.
            http = running.port + (-1 if name == "triton-grpc" else 1)
            for ask, port in (classify_http, http), (classify_grpc, running.port):
                scores = ask(f"127.0.0.1:{port}", photo).ravel()
                same = bool(np.allclose(scores, right, rtol=1e-3, atol=1e-3))
                server = {"triton-grpc": "Triton", "mlserver": "MLServer"}[name]
                said = f"class {scores.argmax()}, as onnxruntime: {same}"
                lines.append(f"{ask.__name__} {server}: {said}")
                print(lines[-1], file=sys.stderr)
    ANSWERS.write_text(json.dumps(lines))


if __name__ == "__main__":
    main()
