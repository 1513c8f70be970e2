"""The text in a photograph: calls the models of the pipeline as the photograph asks.

This is Triton's *business logic scripting*: an ordinary Python model whose work is to
ask other models of the same server. Their tensors never leave it.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance, which answers `photo` with `texts`."""

    def initialize(self, args):
        """Read how many lines go into one request to the recogniser."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.batch = int(parameters["batch"]["string_value"])

    def execute(self, requests):
        """Answer each request by itself."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """Return the texts."""
        photo = pb_utils.get_input_tensor_by_name(request, "photo").as_numpy()
        texts = np.array(list(self.read(photo)), np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("texts", texts)])

    def read(self, photo):
        """Yield the text of each line; ask for none where none was detected."""
        (image,) = ask("prepare", ["image"], photo=photo)
        (found,) = ask("detect", ["sigmoid_0.tmp_0"], x=image)
        crops, boxes = ask("crop", ["crops", "boxes"], photo=photo, map=found)
        for start in range(0, len(boxes), self.batch):
            some = crops[start : start + self.batch]
            (scores,) = ask("recognise", ["softmax_11.tmp_0"], x=some)
            (texts,) = ask("decode", ["texts"], probabilities=scores)
            yield from texts


def ask(model, outputs, **inputs):
    """Return these outputs of another model of this server."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
    )
    response = request.exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    tensors = [pb_utils.get_output_tensor_by_name(response, name) for name in outputs]
    return [tensor.as_numpy() for tensor in tensors]
