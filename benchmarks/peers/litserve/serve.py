"""LitServe, whose workers are processes."""

import os
from typing import Annotated

import litserve as ls
import numpy as np
import onnxruntime as ort
from fastapi import Body, Response


class Classifier(ls.LitAPI):
    """The classifier; a body that is no JSON has to be asked for by its type."""

    def setup(self, device: str) -> None:
        """Open the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options)

    def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray:
        """Read the tensor."""
        return np.frombuffer(request, np.float32).reshape(-1, 3, 224, 224)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Run the model."""
        return self.session.run(["logits"], {"image": x})[0]

    def encode_response(self, output: np.ndarray) -> Response:
        """Answer in bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = ls.LitServer(
        Classifier(api_path="/infer"),
        accelerator="cpu",
        workers_per_device=int(os.environ["WORKERS"]),
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
        num_api_servers=int(os.environ["SLOTS"]),
    )
