"""BentoML; a body that is no JSON reaches it as a file."""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import onnxruntime as ort
from starlette.responses import Response


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 60})
class Classifier:
    """The classifier, in as many processes as there are workers."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options)

    @bentoml.api(route="/infer")
    def infer(self, body: Path, /) -> Any:  # noqa: ANN401 - it knows no Response
        """Answer a tensor's bytes with its scores' bytes."""
        image = np.fromfile(body, np.float32).reshape(-1, 3, 224, 224)
        logits = self.session.run(["logits"], {"image": image})[0]
        return Response(logits.tobytes(), media_type="application/octet-stream")
