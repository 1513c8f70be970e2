"""Answers with how many things it keeps, and keeps what it should let go.

A request's parameter `keep` is "array" or "request"; without it, nothing is kept.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.kept = []

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        array = request.inputs()[0].as_numpy()
        keep = json.loads(request.parameters() or "{}").get("keep")
        if keep:
            self.kept.append({"array": array, "request": request}[keep])
        kept = pb_utils.Tensor("KEPT", np.int32([[len(self.kept)]]))
        return pb_utils.InferenceResponse([kept])
