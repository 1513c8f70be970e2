"""What a model's `config.pbtxt` says, in the terms of a graph."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

CONTROL_TYPES = {
    "int32_false_true": "TYPE_INT32",
    "fp32_false_true": "TYPE_FP32",
    "bool_false_true": "TYPE_BOOL",
}


class Refusal(Exception):
    """Why a model is not served, in one sentence for the log."""


class Spec(NamedTuple):
    """A tensor's type and shape, where -1 is any length."""

    data_type: str
    shape: list[int]


Specs = dict[str, Spec]


class Configuration:
    """A model's `config.pbtxt`, as the core hands it over."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.sequences = config.get("sequence_batching", {})
        parameters = config["parameters"].items()
        self.parameters = {name: value["string_value"] for name, value in parameters}
        level = config["optimization"].get("graph", {}).get("level", 0)
        self.parameters["optimization.graph.level"] = str(level)

    @property
    def batching(self) -> bool:
        """Whether the first dimension of every tensor is the batch."""
        return self.config["max_batch_size"] > 0

    def refusal(self, message: str, tensor: str | None = None) -> Refusal:
        """Make the exception that fails the load."""
        whose = f", tensor '{tensor}'" if tensor else ""
        return Refusal(f"model '{self.config['name']}'{whose}: {message}")

    def refuse_unsupported(self) -> None:
        """Refuse what needs the C++ side of the core."""
        for name in "batch_input", "batch_output":
            if self.config[name]:
                raise self.refusal(f"the embedded server does not support {name}")
        if self.config.get("model_transaction_policy", {}).get("decoupled"):
            raise self.refusal("an ONNX model answers once, so decoupled is no use")

    def parameter(self, name: str, allowed: dict[str, T]) -> T:
        """Read what a parameter means; the first of the allowed is the default."""
        value = self.parameters.get(name, next(iter(allowed)))
        if value.lower() not in allowed:
            choice = f"must be one of {', '.join(allowed)}"
            raise self.refusal(f"parameter {name} is '{value}' but {choice}")
        return allowed[value.lower()]

    def threads(self, name: str) -> int:
        """Read a number of threads, where 0 leaves it to onnxruntime."""
        value = self.parameters.get(name, "0")
        if not re.fullmatch(r"\d{1,4}", value):
            choice = "must be a whole number from 0 up"
            raise self.refusal(f"parameter {name} is '{value}' but {choice}")
        return int(value)

    def spec(self, data_type: str, dims: Iterable[Any]) -> Spec:
        """Describe a tensor as the graph sees it: with the batch dimension."""
        return Spec(data_type, [-1] * self.batching + [int(dim) for dim in dims])

    def tensors(self, kind: str) -> Specs:
        """List the inputs or outputs of `config.pbtxt` itself."""
        return {
            tensor["name"]: self.spec(
                tensor["data_type"],
                tensor.get("reshape", {}).get("shape", tensor["dims"]),
            )
            for tensor in self.config[kind]
        }

    def states(self, side: str) -> Specs:
        """List the implicit states, under their input names or their output names."""
        states = self.sequences.get("state", [])
        return {s[side]: self.spec(s["data_type"], s["dims"]) for s in states}

    def sequence_inputs(self) -> Specs:
        """List what the sequence batcher adds to a request: controls and states."""
        controls = {}
        for tensor in self.sequences.get("control_input", []):
            control = tensor["control"][0]
            types = [CONTROL_TYPES[key] for key in CONTROL_TYPES if control.get(key)]
            data_type = types[0] if types else control["data_type"]
            controls[tensor["name"]] = self.spec(data_type, [1])
        return controls | self.states("input_name")

    def inputs(self) -> Specs:
        """List all that the model will be given."""
        return self.tensors("input") | self.sequence_inputs()

    def outputs(self) -> Specs:
        """List all that the model has to give."""
        return self.tensors("output") | self.states("output_name")


def quoted(names: Iterable[str]) -> str:
    """List names for a message."""
    return ", ".join(f"'{name}'" for name in names)
