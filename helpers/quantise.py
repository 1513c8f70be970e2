"""A model in 8-bit integers, made by ONNX Runtime's tools; lesson 06 writes it out."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Typical(CalibrationDataReader):
    """Inputs that show how large a model's numbers get, one at a time."""

    def __init__(self, name: str, inputs: Iterable[np.ndarray]) -> None:
        self.rows = ({name: row[np.newaxis]} for row in inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input, or None after the last."""
        return next(self.rows, None)


def to_int8(
    model: Path, target: Path, photos: np.ndarray, per_channel: bool = True
) -> None:
    """Write a quantised copy of an ONNX model with an input `image` to `target`.

    `photos` [count, ...] are typical inputs. Weights keep to 7 bits (`reduce_range`):
    processors without VNNI add up products in 16 bits, which 8 would overflow.
    """
    prepared = target.with_name(f"{target.name}.prepared")
    quant_pre_process(model, prepared, skip_optimization=True)
    quantize_static(
        prepared,
        target,
        Typical("image", photos),
        per_channel=per_channel,
        reduce_range=True,
    )
    prepared.unlink()
