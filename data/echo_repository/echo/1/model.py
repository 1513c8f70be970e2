"""Answers with the words that it was sent, and remembers how long requests ended.

A request's parameter `hold_ms` is the time to take over it, unless the client withdraws
it; `report` asks for the ends of all that had one since the last report.
"""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.record = []

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        words = pb_utils.get_input_tensor_by_name(request, "WORDS").as_numpy()
        options = json.loads(request.parameters() or "{}")
        if "report" in options:
            words, self.record = np.array([self.record], object), []
        if "hold_ms" in options:
            end = time.monotonic() + options["hold_ms"] / 1000
            while time.monotonic() < end and not request.is_cancelled():
                time.sleep(0.02)
            self.record.append("withdrawn" if request.is_cancelled() else "finished")
        return pb_utils.InferenceResponse([pb_utils.Tensor("WORDS", words)])
