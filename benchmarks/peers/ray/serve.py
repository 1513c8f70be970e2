"""Ray Serve, whose replicas are processes behind a proxy."""

import os
import signal

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=int(os.environ["WORKERS"]),
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 0},
)
class Classifier:
    """The classifier, one request at a time in each replica."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options)

    async def __call__(self, request: Request) -> Response:
        """Answer a tensor's bytes with its scores' bytes."""
        image = np.frombuffer(await request.body(), np.float32)
        feeds = {"image": image.reshape(-1, 3, 224, 224)}
        logits = self.session.run(["logits"], feeds)[0]
        return Response(logits.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=os.environ["SCRATCH"])
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])},
        logging_config={"enable_access_log": False},
    )
    serve.run(Classifier.bind(), route_prefix="/infer")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
