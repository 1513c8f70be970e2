"""Serve ordinary ONNX models in the embedded Triton, on the `onnxruntime` package.

NVIDIA's container has a C++ backend for models whose `config.pbtxt` says `platform:
"onnxruntime_onnx"`; the wheel's server has none. Triton takes this file for it: a
folder `<backend-directory>/onnxruntime/` with a `model.py` is a *Python-based backend*,
and each model instance runs it in a process of its own. What the C++ backend documents
(https://github.com/triton-inference-server/onnxruntime_backend) holds here too, so that
one model repository serves both.
"""

# ruff: noqa: ANN401 - Triton's own Python objects have no types to name

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

Arrays = dict[str, np.ndarray]
Providers = list[tuple[str, dict[str, str]]]

DEFAULT_MAX_BATCH_SIZE = 4  # the server's own default for auto-completion
CONTROL_TYPES = {
    "int32_false_true": "TYPE_INT32",
    "fp32_false_true": "TYPE_FP32",
    "bool_false_true": "TYPE_BOOL",
}
# What a parameter may be, and what it then means; the first is the default.
YES_NO = {"1": True, "0": False, "true": True, "false": False}
EXECUTION_MODES = {
    "0": ort.ExecutionMode.ORT_SEQUENTIAL,
    "1": ort.ExecutionMode.ORT_PARALLEL,
}
GRAPH_LEVELS = {
    "0": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {"1": "1", "0": "0"},
}
SPINNING = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")
SWITCHES = (
    *SPINNING,
    "session.set_denormal_as_zero",
    "session.use_device_allocator_for_initializers",
)
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ACCELERATORS = {
    "gpu_execution_accelerator": {
        "cuda": CUDA,
        "tensorrt": "TensorrtExecutionProvider",
    },
    "cpu_execution_accelerator": {"openvino": "OpenVINOExecutionProvider"},
}
# onnxruntime's own words reach the client in a response, or the log as the reason of a
# failed load: printed a second time they only clutter it.
SILENT = 4
ort.set_default_logger_severity(SILENT)


class Spec(NamedTuple):
    """A tensor's type and shape, where -1 is any length."""

    data_type: str
    shape: list[int]


Specs = dict[str, Spec]


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
        config = auto_complete_model_config.as_dict()
        if is_partial(config):
            options = ort.SessionOptions()
            options.graph_optimization_level = GRAPH_LEVELS["2"]
            session = open_session(Configuration(config), options, [(CPU, {})])
            complete(config, session)
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model, and refuse a configuration that it cannot keep."""
        config = Configuration(json.loads(args["model_config"]))
        config.refuse_unsupported()
        providers = execution_providers(config, args)
        self.run_options = run_options(config, providers)
        self.session = open_session(config, session_options(config), providers)
        compare(config, self.session)
        self.graph_inputs = graph_inputs(self.session)
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
        arrays = self.session.run(names, feeds, self.run_options)
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


class Configuration:
    """A model's `config.pbtxt`, as the core hands it over."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.batching = config["max_batch_size"] > 0
        self.sequences = config.get("sequence_batching", {})
        self.optimization = config.get("optimization", {})
        parameters = config.get("parameters", {}).items()
        self.parameters = {n: value.get("string_value", "") for n, value in parameters}
        level = self.optimization.get("graph", {}).get("level", 0)
        self.parameters["optimization.graph.level"] = str(level)

    def refusal(self, message: str) -> Exception:
        """Make the exception that fails the load, with one sentence for the log."""
        name = self.config["name"]
        return pb_utils.TritonModelException(f"model '{name}'{message}")

    def refuse_unsupported(self) -> None:
        """Refuse what needs the C++ side of the core."""
        for name in "batch_input", "batch_output":
            if self.config.get(name):
                raise self.refusal(f": the embedded server does not support {name}")
        if self.config.get("model_transaction_policy", {}).get("decoupled"):
            raise self.refusal(": an ONNX model answers once, so decoupled is no use")

    def parameter(self, name: str, allowed: dict[str, Any]) -> Any:
        """Read what a parameter means."""
        value = self.parameters.get(name, next(iter(allowed)))
        if value.lower() not in allowed:
            choice = f"must be one of {', '.join(allowed)}"
            raise self.refusal(f": parameter {name} is '{value}' but {choice}")
        return allowed[value.lower()]

    def threads(self, name: str) -> int:
        """Read a number of threads, where 0 leaves it to onnxruntime."""
        value = self.parameters.get(name, "0")
        if not re.fullmatch(r"\d{1,4}", value):
            choice = "must be a whole number from 0 up"
            raise self.refusal(f": parameter {name} is '{value}' but {choice}")
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


# The session: where it runs, and how


def open_session(
    config: Configuration, options: ort.SessionOptions, providers: Providers
) -> ort.InferenceSession:
    """Load the model file out of the folder of the version that is being loaded."""
    path = Path(pb_utils.get_model_dir())
    path /= config.config["default_model_filename"] or "model.onnx"
    if path.is_dir():  # a model too big for one file keeps its weights beside it
        path /= "model.onnx"
    if not path.exists():
        raise config.refusal(f": there is no file '{path}'")
    options.log_severity_level = SILENT
    try:
        session = ort.InferenceSession(path, options, providers)
    except Exception as error:
        raise config.refusal(f": {one_sentence(error)}") from None
    for name, _ in providers:  # onnxruntime drops one that cannot start without a word
        if name not in session.get_providers():
            raise config.refusal(f": onnxruntime could not start its {name}")
    return session


def session_options(config: Configuration) -> ort.SessionOptions:
    """Set what `parameters`, `optimization` and `model_operations` ask for."""
    options = ort.SessionOptions()
    level = config.parameter("optimization.graph.level", GRAPH_LEVELS)
    options.graph_optimization_level = level
    options.execution_mode = config.parameter("execution_mode", EXECUTION_MODES)
    options.intra_op_num_threads = config.threads("intra_op_thread_count")
    options.inter_op_num_threads = config.threads("inter_op_thread_count")
    options.enable_cpu_mem_arena = config.parameter("enable_mem_arena", YES_NO)
    options.enable_mem_pattern = config.parameter("enable_mem_pattern", YES_NO)
    groups = config.config["instance_group"]
    instances = sum(group["count"] * max(1, len(group["gpus"])) for group in groups)
    if instances > 1 and not options.intra_op_num_threads:
        # Each instance has a thread on every core: none may keep a core busy waiting.
        for name in SPINNING:
            options.add_session_config_entry(name, "0")
    for name, value in config.parameters.items():
        if name.startswith("session."):
            if name in SWITCHES:
                value = str(int(config.parameter(name, YES_NO)))
            options.add_session_config_entry(name, value)
    operations = config.config.get("model_operations", {})
    for library in operations.get("op_library_filename", []):
        options.register_custom_ops_library(library)
    return options


def run_options(config: Configuration, providers: Providers) -> ort.RunOptions:
    """Set what every run has to be told anew."""
    options = ort.RunOptions()
    options.log_severity_level = SILENT
    if SHRINKAGE in config.parameters:
        arenas = [
            f"gpu:{given['device_id']}" for name, given in providers if name == CUDA
        ]
        if config.parameter("enable_mem_arena", YES_NO):
            arenas = ["cpu:0", *arenas, *(f"cpu:0;{arena}" for arena in arenas)]
        if not arenas:
            raise config.refusal(f": parameter {SHRINKAGE} needs enable_mem_arena")
        arena = config.parameter(SHRINKAGE, {arena: arena for arena in arenas})
        options.add_run_config_entry(SHRINKAGE, arena)
    return options


def execution_providers(config: Configuration, args: dict[str, str]) -> Providers:
    """Choose what computes: on a GPU instance CUDA, else the CPU."""
    available = ort.get_available_providers()
    on_gpu = args["model_instance_kind"] == "GPU"
    if on_gpu and CUDA not in available:
        if names_gpu(Path(args["model_repository"])):
            cure = f"has no {CUDA}; install onnxruntime-gpu or say KIND_CPU"
            raise config.refusal(f": KIND_GPU is asked for, but onnxruntime {cure}")
        on_gpu = False
    providers: dict[str, dict[str, str]] = {}
    accelerators = config.optimization.get("execution_accelerators", {})
    for kind, known in ACCELERATORS.items():
        for accelerator in accelerators.get(kind, []):
            provider = known.get(accelerator["name"])
            if provider not in available or (kind.startswith("gpu") and not on_gpu):
                where = (
                    f"a {'GPU' if on_gpu else 'CPU'} instance with {quoted(available)}"
                )
                name = f"{kind} '{accelerator['name']}'"
                raise config.refusal(f": {name} cannot be honoured on {where}")
            providers[provider] = dict(accelerator["parameters"])
    if on_gpu:
        providers[CUDA] = cuda_parameters(config) | providers.pop(CUDA, {})
        for options in providers.values():
            options["device_id"] = args["model_instance_device_id"]
    return [*providers.items(), (CPU, {})]


def cuda_parameters(config: Configuration) -> dict[str, str]:
    """Read the CUDA provider's options from where they stood before accelerators."""
    given = config.parameters
    limit = {name: given[name] for name in ("gpu_mem_limit",) if name in given}
    return limit | {
        name: config.parameter(name, allowed)
        for name, allowed in CUDA_PARAMETERS.items()
        if name in given
    }


def names_gpu(repository: Path) -> bool:
    """Tell whether `config.pbtxt` itself says KIND_GPU.

    The core makes KIND_AUTO a KIND_GPU wherever there is a GPU, so the configuration
    that it hands over no longer tells who asked.
    """
    path = repository / "config.pbtxt"
    return path.exists() and "KIND_GPU" in re.sub(r"#.*", "", path.read_text())


# The graph, beside the configuration


def specs(nodes: Iterable[Any]) -> Specs:
    """Describe a graph's tensors; a dimension that has a name, or none, becomes -1."""
    return {
        node.name: Spec(
            data_type(node.type), [d if isinstance(d, int) else -1 for d in node.shape]
        )
        for node in nodes
    }


def data_type(onnx_type: str) -> str:
    """Name an ONNX type as Triton does, or leave it where Triton has no such tensor."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    name = {"float16": "fp16", "float": "fp32", "double": "fp64"}.get(name, name)
    triton = f"TYPE_{name.upper()}"
    return triton if triton in pb_utils.TRITON_STRING_TO_NUMPY else onnx_type


def graph_inputs(session: ort.InferenceSession) -> Specs:
    """Describe what a graph can be given, and so its overridable initializers too."""
    return specs([*session.get_inputs(), *session.get_overridable_initializers()])


def is_partial(config: dict[str, Any]) -> bool:
    """Tell whether the configuration leaves a tensor, or a part of one, out."""
    tensors = [*config["input"], *config["output"]]
    return not (config["input"] and config["output"]) or any(
        tensor["data_type"] == "TYPE_INVALID" or not tensor["dims"]
        for tensor in tensors
    )


def complete(config: dict[str, Any], session: ort.InferenceSession) -> None:
    """Fill in what is left out, by the rules of the C++ backend.

    A graph can batch where the first dimension of all its tensors varies, and then
    `max_batch_size: 0` reads as left out. The setters of Triton's own ModelConfig know
    no `reshape`: this writes to the configuration itself.
    """
    inputs, outputs = specs(session.get_inputs()), specs(session.get_outputs())
    if all(spec.shape[:1] == [-1] for spec in [*inputs.values(), *outputs.values()]):
        config["max_batch_size"] = config["max_batch_size"] or DEFAULT_MAX_BATCH_SIZE
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            config.setdefault("dynamic_batching", {})
    reader = Configuration(config)
    for name in reader.sequence_inputs():
        inputs.pop(name, None)
    for kind, known in ("input", inputs), ("output", outputs):
        listed = config[kind] or [{"name": name} for name in known]
        config[kind] = [completed(reader, kind, tensor, known) for tensor in listed]


def completed(
    config: Configuration, kind: str, tensor: dict[str, Any], known: Specs
) -> dict[str, Any]:
    """Add the type and the dims that a tensor's entry lacks."""
    name = tensor["name"]
    spec = known_spec(config, kind, name, known)
    if spec.data_type not in pb_utils.TRITON_STRING_TO_NUMPY:
        message = f"Triton's Python backend has no type for {spec.data_type}"
        raise config.refusal(f", tensor '{name}': {message}")
    dims = spec.shape[1:] if config.batching else spec.shape
    found: dict[str, Any] = {"data_type": spec.data_type, "dims": dims or [1]}
    if config.batching and not dims:
        found["reshape"] = {"shape": []}
    return found | {k: v for k, v in tensor.items() if v not in ("TYPE_INVALID", [])}


def compare(config: Configuration, session: ort.InferenceSession) -> None:
    """Refuse a configuration whose tensors are not the graph's."""
    inputs = config.inputs()
    for name, spec in inputs.items():
        compare_tensor(config, "input", name, spec, graph_inputs(session))
    for node in session.get_inputs():
        if node.name not in inputs:
            message = f"but the model configuration specifies only {quoted(inputs)}"
            raise config.refusal(
                f", tensor '{node.name}': the model needs it {message}"
            )
    for name, spec in config.outputs().items():
        compare_tensor(config, "output", name, spec, specs(session.get_outputs()))


def compare_tensor(
    config: Configuration, kind: str, name: str, spec: Spec, known: Specs
) -> None:
    """Refuse a tensor whose type or shape is not the graph's."""
    model = known_spec(config, kind, name, known)
    expects = f", tensor '{name}': the model expects"
    specifies = "but the model configuration specifies"
    if spec.data_type != model.data_type:
        message = f"data type {model.data_type} {specifies} {spec.data_type}"
        raise config.refusal(f"{expects} {message}")
    if config.batching and model.shape[:1] != [-1]:
        size = f"max_batch_size {config.config['max_batch_size']}"
        cure = "set it to 0, for the model's first dimension is not variable"
        raise config.refusal(
            f"{expects} shape {model.shape} {specifies} {size}: {cure}"
        )
    if not fits(spec.shape, model.shape, exact=kind == "output"):
        message = f"{len(model.shape)} dimensions (shape {model.shape}) {specifies}"
        note = ", the first for the batch" if config.batching else ""
        raise config.refusal(
            f"{expects} {message} {len(spec.shape)} dimensions "
            f"(shape {spec.shape}{note})"
        )


def fits(shape: list[int], model: list[int], exact: bool) -> bool:
    """Compare shapes: the model's -1 takes any length, a scalar takes dims of 1.

    An output is exact, as in the C++ backend: nobody can promise more than the model.
    """
    if not model:
        return all(dim == 1 for dim in shape)
    return len(shape) == len(model) and all(
        mine == dim or (dim == -1 and not exact)
        for mine, dim in zip(shape, model, strict=True)
    )


def known_spec(config: Configuration, kind: str, name: str, known: Specs) -> Spec:
    """Find a configured tensor in the graph."""
    if name not in known:
        message = f"specifies this {kind} but the model has {quoted(known)}"
        raise config.refusal(f", tensor '{name}': the model configuration {message}")
    return known[name]


# Words and strings


def decode(array: np.ndarray) -> np.ndarray:
    """Turn Triton's BYTES elements into the `str` elements that onnxruntime takes."""
    texts = [element.decode() for element in array.ravel()]
    return np.array(texts, dtype=object).reshape(array.shape)


def failure(message: str) -> Any:
    """Make the response of a request that has no result."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))


def one_sentence(error: Exception) -> str:
    """Take line breaks and C++ source positions out of onnxruntime's words."""
    text = re.sub(r"/onnxruntime_src/.*?\) ", "", " ".join(str(error).split()))
    return re.sub(
        r"^\[ONNXRuntimeError\] : (\d+) : \w+ :", r"onnxruntime error \1:", text
    )


def quoted(names: Iterable[str]) -> str:
    """List names for a message."""
    return ", ".join(f"'{name}'" for name in names)
