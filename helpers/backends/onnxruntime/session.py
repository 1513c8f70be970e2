"""How onnxruntime runs a model: what `parameters` and `optimization` ask of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnxruntime as ort
from configuration import Configuration

Providers = list[tuple[str, dict[str, str]]]

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
STOP = "session.force_spinning_stop"
SWITCHES = (
    *SPINNING,
    STOP,
    "session.set_denormal_as_zero",
    "session.use_device_allocator_for_initializers",
)
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
# onnxruntime's own words reach the client in a response, or the log as the reason of a
# failed load: printed a second time they only clutter it.
SILENT = 4
ort.set_default_logger_severity(SILENT)


def model_file(config: Configuration, version: Path) -> Path:
    """Find the model file in a version's folder."""
    path = version / (config.config["default_model_filename"] or "model.onnx")
    if path.is_dir():  # a model too big for one file keeps its weights beside it
        path /= "model.onnx"
    if not path.exists():
        raise config.refusal(f"there is no file '{path}'")
    return path


def open_session(
    config: Configuration, version: Path, providers: Providers, threads: int = 0
) -> ort.InferenceSession:
    """Load the model file out of a version's folder."""
    path = model_file(config, version)
    shared = shared_cores(config, providers) is not None
    options = session_options(config, threads, shared=shared)
    try:
        session = ort.InferenceSession(path, options, providers)
    except Exception as error:
        raise config.refusal(one_sentence(error)) from None
    for name, _ in providers:  # onnxruntime drops one that cannot start without a word
        if name not in session.get_providers():
            raise config.refusal(f"onnxruntime could not start its {name}")
    return session


def instances(config: Configuration) -> int:
    """Count the instances of a model."""
    groups = config.config["instance_group"]
    return sum(group["count"] * max(1, len(group["gpus"])) for group in groups)


def shared_cores(config: Configuration, providers: Providers) -> int | None:
    """Return how many threads an instance may have while others of its model compute.

    None where that is settled: by the configuration, or because there is but one.
    """
    if providers != [(CPU, {})] or config.threads("intra_op_thread_count"):
        return None
    cores, others = len(os.sched_getaffinity(0)), instances(config)
    return max(1, cores // others) if min(cores, others) > 1 else None


def session_options(
    config: Configuration, threads: int = 0, *, shared: bool = False
) -> ort.SessionOptions:
    """Set what `parameters`, `optimization` and `model_operations` ask for.

    `threads`, unless 0, is how many a run has; `shared` says that the instances of the
    model look at each other.
    """
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    level = config.parameter("optimization.graph.level", GRAPH_LEVELS)
    options.graph_optimization_level = level
    options.execution_mode = config.parameter("execution_mode", EXECUTION_MODES)
    options.intra_op_num_threads = threads or config.threads("intra_op_thread_count")
    options.inter_op_num_threads = config.threads("inter_op_thread_count")
    options.enable_cpu_mem_arena = config.parameter("enable_mem_arena", YES_NO)
    options.enable_mem_pattern = config.parameter("enable_mem_pattern", YES_NO)
    if instances(config) > 1 and not config.threads("intra_op_thread_count"):
        # Each instance may take every core, so none may keep one busy with waiting: not
        # between its runs where they look at each other, else not at all.
        entries = {STOP: "1"} if shared else dict.fromkeys(SPINNING, "0")
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
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
        arenas = ["cpu:0"] * config.parameter("enable_mem_arena", YES_NO)
        arenas += [f"gpu:{own['device_id']}" for name, own in providers if name == CUDA]
        if not arenas:
            raise config.refusal(f"parameter {SHRINKAGE} needs enable_mem_arena")
        allowed = {arena: arena for arena in [*arenas, ";".join(arenas)]}
        arena = config.parameter(SHRINKAGE, allowed)
        options.add_run_config_entry(SHRINKAGE, arena)
    return options


def execution_providers(
    config: Configuration, args: dict[str, str], available: list[str]
) -> Providers:
    """Choose what computes: on a GPU instance CUDA, else OpenVINO or the CPU.

    `args` are those of `initialize`, `available` are the providers of onnxruntime.
    """
    on_gpu = args["model_instance_kind"] == "GPU"
    if on_gpu and CUDA not in available:
        if names_gpu(Path(args["model_repository"])):
            cure = f"has no {CUDA}; install onnxruntime-gpu or say KIND_CPU"
            raise config.refusal(f"KIND_GPU is asked for, but onnxruntime {cure}")
        on_gpu = False
    known = {"gpu_execution_accelerator 'cuda'": CUDA} if on_gpu else {}
    known |= {} if on_gpu else {"cpu_execution_accelerator 'openvino'": OPENVINO}
    given: dict[str, dict[str, str]] = {}
    accelerators = config.config["optimization"].get("execution_accelerators", {})
    for kind, listed in accelerators.items():
        for accelerator in listed:
            name = f"{kind} '{accelerator['name']}'"
            if name not in known:
                where = f"a {'GPU' if on_gpu else 'CPU'} instance"
                raise config.refusal(f"{name} cannot be honoured on {where}")
            if known[name] not in available:
                lack = f"but onnxruntime has no {known[name]}"
                raise config.refusal(f"{name} is asked for, {lack}")
            given[known[name]] = accelerator["parameters"]
    if on_gpu:
        device = {"device_id": args["model_instance_device_id"]}
        given = {CUDA: cuda_parameters(config) | given.get(CUDA, {}) | device}
    return [*given.items(), (CPU, {})]


def cuda_parameters(config: Configuration) -> dict[str, str]:
    """Read the CUDA provider's options from where they stood before accelerators."""
    given = config.parameters
    limit = {n: value for n, value in given.items() if n == "gpu_mem_limit"}
    known = {n: CUDA_PARAMETERS[n] for n in CUDA_PARAMETERS.keys() & given.keys()}
    return limit | {n: config.parameter(n, allowed) for n, allowed in known.items()}


def names_gpu(repository: Path) -> bool:
    """Tell whether `config.pbtxt` itself says KIND_GPU.

    The core makes KIND_AUTO a KIND_GPU wherever there is a GPU, so the configuration
    that it hands over no longer tells who asked.
    """
    path = repository / "config.pbtxt"
    return path.exists() and "KIND_GPU" in re.sub(r"#.*", "", path.read_text())


def one_sentence(error: Exception) -> str:
    """Take line breaks and C++ source positions out of onnxruntime's words."""
    text = re.sub(r"/onnxruntime_src/.*?\) ", "", " ".join(str(error).split()))
    return re.sub(
        r"^\[ONNXRuntimeError\] : (\d+) : \w+ :", r"onnxruntime error \1:", text
    )
