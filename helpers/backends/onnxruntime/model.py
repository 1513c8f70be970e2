"""Serve ordinary ONNX models in the embedded Triton, on the `onnxruntime` package.

NVIDIA's container has a C++ backend for models whose `config.pbtxt` says `platform:
"onnxruntime_onnx"`; the wheel's server has none. Triton takes this folder for it: a
folder `<backend-directory>/onnxruntime/` with a `model.py` is a *Python-based backend*,
and each model instance runs it in a process of its own. What the C++ backend documents
(https://github.com/triton-inference-server/onnxruntime_backend) holds here too, so that
one model repository serves both.

This file is the way of a request. Before the first one, `configuration.py` reads what
`config.pbtxt` says, `session.py` opens the model as it asks, and `graph.py` compares
the two; `sharing.py` lets the instances of a model share the processor's cores.
"""

# ruff: noqa: ANN401 - Triton's own Python objects have no types to name

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# helpers.openvino names a folder with another build of onnxruntime, which comes first.
if folder := os.environ.get("TRITON_NOTEBOOKS_ONNXRUNTIME"):
    sys.path.insert(0, folder)

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from configuration import Configuration, Refusal
from graph import compare, complete, graph_inputs, is_partial
from session import CPU, execution_providers, one_sentence, open_session, run_options
from sharing import Sessions

Arrays = dict[str, np.ndarray]


@dataclass
class Job:
    """One request on its way to its response; `wanted` are the outputs it asks for."""

    request: Any
    wanted: set[str]
    inputs: Arrays
    response: Any = None


class TritonPythonModel:
    """One instance of an ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in what `config.pbtxt` leaves out, from the graph."""
        config = Configuration(auto_complete_model_config.as_dict())
        with refusals():
            if is_partial(config):
                version = Path(pb_utils.get_model_dir())
                complete(config, open_session(config, version, [(CPU, {})]))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model, and refuse a configuration that it cannot keep."""
        config = Configuration(json.loads(args["model_config"]))
        version = Path(pb_utils.get_model_dir())
        with refusals():
            config.refuse_unsupported()
            available = ort.get_available_providers()
            providers = execution_providers(config, args, available)
            self.run_options = run_options(config, providers)
            self.sessions = Sessions(config, version, providers)
            compare(config, self.sessions.alone)
        self.graph_inputs = graph_inputs(self.sessions.alone)
        self.outputs = config.outputs()
        self.batching = config.batching
        self.states = States(config.sequences)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one execution in as few runs as their shapes allow."""
        jobs = [self.read(request) for request in requests]
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            if job.response is None:
                groups.setdefault(self.group_of(job), []).append(job)
        for group in groups.values():
            self.answer(group)
        return [job.response for job in jobs]

    def read(self, request: Any) -> Job:
        """Take a request's tensors, as the graph wants them."""
        job = Job(request, set(request.requested_output_names()), {})
        for tensor in request.inputs():
            name, array = tensor.name(), tensor.as_numpy()
            data_type, shape = self.graph_inputs[name]
            try:
                array = decode(array) if data_type == "TYPE_STRING" else array
                job.inputs[name] = array if shape else array.reshape(())
            except ValueError as error:
                job.response = failure(f"input '{name}' cannot be read: {error}")
        job.inputs |= self.states.of(request)
        return job

    def group_of(self, job: Job) -> Any:
        """Name the group of requests that fit into one batch with this one."""
        if not self.batching:
            return id(job)
        return frozenset((name, a.shape[1:]) for name, a in job.inputs.items())

    def answer(self, group: list[Job]) -> None:
        """Run a group and, where that fails, each of its requests alone."""
        try:
            self.run(group)
        except Exception as error:  # onnxruntime's exceptions share no other base
            if len(group) == 1:
                group[0].response = failure(one_sentence(error))
            else:
                for job in group:
                    self.answer([job])

    def run(self, group: list[Job]) -> None:
        """Compute what the group's requests ask for in one run, and hand it out."""
        feeds = group[0].inputs
        if len(group) > 1:
            feeds = {n: np.concatenate([job.inputs[n] for job in group]) for n in feeds}
        names = list(set(self.states.outputs).union(*(job.wanted for job in group)))
        with self.sessions.fitting() as session:
            arrays = session.run(names, feeds, self.run_options)
        results = dict(zip(names, arrays, strict=True))
        for job, mine in zip(group, self.split(results, group), strict=True):
            tensors = [self.tensor(n, mine[n]) for n in self.outputs if n in job.wanted]
            job.response = pb_utils.InferenceResponse(tensors)
            self.states.keep(job.request, mine)

    def split(self, results: Arrays, group: list[Job]) -> list[Arrays]:
        """Cut the results along the batch dimension, one part for each request."""
        if not self.batching:
            return [results]
        rows = [len(next(iter(job.inputs.values()))) for job in group]
        for name, a in results.items():
            if len(a) != sum(rows):
                found = f"{len(a)} rows for a batch of {sum(rows)}"
                raise ValueError(f"output '{name}' has {found}")
        if len(group) == 1:
            return [results]
        return [
            {name: a[end - count : end] for name, a in results.items()}
            for end, count in zip(np.cumsum(rows), rows, strict=True)
        ]

    def tensor(self, name: str, array: np.ndarray) -> Any:
        """Wrap a result; a scalar gets its configured dims, as Triton knows none."""
        if not array.ndim:
            array = array.reshape(self.outputs[name].shape)
        return pb_utils.Tensor(name, array)


class States:
    """The implicit state of each running sequence.

    With every request the core hands out a state's initial value, but it offers Python
    no way to give it the next one. A sequence stays on its instance: it is kept here.
    """

    def __init__(self, sequences: dict[str, Any]) -> None:
        states = sequences.get("state", [])
        self.outputs = {state["output_name"]: state["input_name"] for state in states}
        # Twice as long as the core remembers an idle sequence.
        self.seconds = 2e-6 * sequences.get("max_sequence_idle_microseconds", 0)
        self.kept: dict[Any, tuple[float, Arrays]] = {}

    def of(self, request: Any) -> Arrays:
        """Give the state that the sequence's last request left, by input name."""
        start = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
        if not self.outputs or request.flags() & start:
            return {}
        return self.kept.get(request.correlation_id(), (0.0, {}))[1]

    def keep(self, request: Any, results: Arrays) -> None:
        """Remember the sequence's state until it ends, or is idle too long."""
        if not self.outputs:
            return
        sequence, now = request.correlation_id(), time.monotonic()
        self.kept.pop(sequence, None)
        end = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
        # Number 0 is no sequence: the core fills a batch's empty slots with it.
        if sequence and not request.flags() & end:
            state = {taken: results[given] for given, taken in self.outputs.items()}
            self.kept[sequence] = now, state
        for other, (used, _) in list(self.kept.items()):
            if now - used < self.seconds:
                break
            del self.kept[other]


@contextmanager
def refusals() -> Iterator[None]:
    """Fail the load with a refusal's sentence."""
    try:
        yield
    except Refusal as reason:
        raise pb_utils.TritonModelException(str(reason)) from None


def decode(array: np.ndarray) -> np.ndarray:
    """Turn Triton's BYTES elements into the `str` elements that onnxruntime takes."""
    texts = [element.decode() for element in array.ravel()]
    return np.array(texts, dtype=object).reshape(array.shape)


def failure(message: str) -> Any:
    """Make the response of a request that has no result."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
