"""TorchServe with a handler of our own; its front end is a Java program."""

import os
from typing import Any

import numpy as np
import onnxruntime as ort


class Classifier:
    """The classifier, in as many processes as there are workers."""

    def initialize(self, _context: object) -> None:
        """Open the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options)

    def handle(self, data: list[dict[str, Any]], _context: object) -> list[bytes]:
        """Answer each tensor's bytes with its scores' bytes."""
        answers = []
        for request in data:
            image = np.frombuffer(request["body"], np.float32)
            feeds = {"image": image.reshape(-1, 3, 224, 224)}
            answers.append(self.session.run(["logits"], feeds)[0].tobytes())
        return answers


service = Classifier()


def handle(data: list[dict[str, Any]] | None, context: object) -> list[bytes] | None:
    """Be what TorchServe calls: once to start, then with requests."""
    if data is None:
        service.initialize(context)
        return None
    return service.handle(data, context)
