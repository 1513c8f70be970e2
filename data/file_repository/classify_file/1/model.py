"""Read photographs on the server, and ask the classifier for their scores."""

import io
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image


class TritonPythonModel:
    """Files of photographs [batch, 1] in, logits [batch, 1000] out."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with what the classifier says, errors included."""
        return [self.answer(request.inputs()[0].as_numpy()) for request in requests]

    def answer(self, files: np.ndarray) -> Any:
        """Decode a batch, and hand it to the classifier."""
        try:
            photos = np.stack([read_photo(file) for file in files.flat])
        except OSError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error)))
        response = pb_utils.InferenceRequest(
            model_name="efficientnet_lite0",
            requested_output_names=["logits"],
            inputs=[pb_utils.Tensor("image", photos)],
        ).exec()
        return pb_utils.InferenceResponse(response.output_tensors(), response.error())


def read_photo(file: bytes) -> np.ndarray:
    """Return a photograph as FP32 [3, 224, 224], RGB, scaled to [-1, 1]."""
    photo = Image.open(io.BytesIO(file)).convert("RGB")
    pixels = np.asarray(photo.resize((224, 224), Image.BILINEAR), np.float32)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)
