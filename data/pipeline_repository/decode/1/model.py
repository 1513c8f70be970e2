"""The recogniser's probabilities as text."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance, which answers `probabilities` with `texts`."""

    def initialize(self, args):
        """Read the characters: class 0 is none, and the last one is the blank."""
        file = Path(args["model_repository"]) / "characters.txt"
        characters = file.read_text(encoding="utf-8").split("\n")[:-1]
        self.characters = np.array(["", *characters, " "])

    def execute(self, requests):
        """Answer each request by itself."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """Return a text for each line that has one."""
        tensor = pb_utils.get_input_tensor_by_name(request, "probabilities")
        best = tensor.as_numpy().argmax(axis=2)
        # A character covers several steps: only where the class changes, one begins.
        begins = np.diff(best, axis=1, prepend=0) != 0
        lines = [
            self.characters[row[new]] for row, new in zip(best, begins, strict=True)
        ]
        texts = ["".join(line).encode() for line in lines if any(line)]
        output = pb_utils.Tensor("texts", np.array(texts, np.object_))
        return pb_utils.InferenceResponse([output])
