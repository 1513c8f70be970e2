"""A running total for each sequence, kept by its correlation id."""

from __future__ import annotations

import json

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = ("value", "start", "ready", "end", "number")


def read(request: pb_utils.InferenceRequest) -> list[int]:
    """Return what a request carries, in the order of INPUTS."""
    tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS]
    return [int(tensor.as_numpy()[0, 0]) for tensor in tensors]


def answer(total: int, batch: str) -> pb_utils.InferenceResponse:
    """Return the answer to one request."""
    tensors = [
        pb_utils.Tensor("total", np.array([[total]], np.int32)),
        pb_utils.Tensor("batch", np.array([[batch]], object)),
    ]
    return pb_utils.InferenceResponse(tensors)


class TritonPythonModel:
    """The totals of all sequences that are open."""

    def initialize(self, args: dict[str, str]) -> None:
        """Begin without any."""
        self.totals: dict[int, int] = {}

    def execute(
        self, requests: list[pb_utils.InferenceRequest]
    ) -> list[pb_utils.InferenceResponse]:
        """Answer one request of each sequence in the batch."""
        rows = [read(request) for request in requests]
        batch = json.dumps([row[4] if row[2] else None for row in rows])
        return [answer(self.add(*row), batch) for row in rows]

    def add(self, value: int, start: int, ready: int, end: int, number: int) -> int:
        """Add a value to its sequence's total, unless there is none in this row."""
        if not ready:
            return 0
        total = value if start else self.totals[number] + value
        self.totals[number] = total
        if end:
            del self.totals[number]
        return total
