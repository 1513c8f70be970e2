"""A photograph as the detector wants it."""

import io

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

LONGEST = 960  # pixels; a longer side is scaled down to it
MULTIPLE = 32  # the detector halves its input five times


class TritonPythonModel:
    """One instance, which answers `photo` with `image`."""

    def execute(self, requests):
        """Answer each request by itself."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """Return an image; raise where there is none, so that the failure counts."""
        photo = pb_utils.get_input_tensor_by_name(request, "photo").as_numpy()
        try:
            image = prepare(photo.tobytes())
        except OSError as error:
            reason = str(error).partition(" <")[0]
            message = f"the photo cannot be read: {reason}"
            raise pb_utils.TritonModelException(message) from None
        return pb_utils.InferenceResponse([pb_utils.Tensor("image", image)])


def prepare(photo):
    """Return FP32 [1, 3, height, width], blue first, scaled to [-1, 1]."""
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    scale = min(1, LONGEST / max(picture.size))
    size = [max(1, round(n * scale / MULTIPLE)) * MULTIPLE for n in picture.size]
    pixels = np.asarray(picture.resize(size, Image.BILINEAR), np.float32)
    return (pixels[:, :, ::-1] / 127.5 - 1).transpose(2, 0, 1)[None]
