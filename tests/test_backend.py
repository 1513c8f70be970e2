"""The onnxruntime backend of the embedded server does what the container's does.

Two servers do the whole file, for a load takes time: all models of the one have
complete configurations, most of those of the other leave something out.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models as models
import psutil
import pytest
import tritonclient.http as http
from conftest import process_of
from tritonclient.utils import InferenceServerException

from helpers import embedded, repository, server

# Half of the backend knows nothing of Triton, and can be asked here.
sys.path.append(str(Path(embedded.__file__).parent / "backends" / "onnxruntime"))
import session
import sharing
from configuration import Configuration, Refusal

ONE = "instance_group [ { kind: KIND_CPU count: 1 } ]"


def tensors(kind: str, *entries: str) -> str:
    """Write a list of inputs or outputs; an entry is 'NAME TYPE [dims] more'."""
    lines = []
    for entry in entries:
        name, data_type, rest = entry.split(" ", 2)
        lines.append(f'{{ name: "{name}" data_type: TYPE_{data_type} dims: {rest} }}')
    return f"{kind} [ {', '.join(lines)} ]\n"


def config(
    inputs: list[str], outputs: list[str], more: str = "", batch: int = 8
) -> str:
    start = f'platform: "onnxruntime_onnx"\nmax_batch_size: {batch}\n'
    ins, outs = tensors("input", *inputs), tensors("output", *outputs)
    return start + ins + outs + (more if "instance_group" in more else f"{ONE} {more}")


def xy(more: str = "", batch: int = 8, x: str = "FP32 [3]", y: str = "FP32 [3]") -> str:
    return config([f"X {x}"], [f"Y {y}"], more, batch)


def parameters(**values: str) -> str:
    return " ".join(
        f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'
        for name, value in values.items()
    )


def accelerator(kind: str, name: str) -> str:
    inner = f'{kind}_execution_accelerator: [ {{ name: "{name}" }} ]'
    return f"optimization {{ execution_accelerators {{ {inner} }} }}"


def control(name: str, kind: str, type_: str = "int32_false_true: [ 0, 1 ]") -> str:
    inner = f"control [ {{ kind: CONTROL_SEQUENCE_{kind} {type_} }} ]"
    return f'control_input [ {{ name: "{name}" {inner} }} ]'


STATE = """state [ { input_name: "STATE" output_name: "NEXT" data_type: TYPE_FP32
dims: [1] initial_state { name: "zero" data_type: TYPE_FP32 dims: [1] zero_data: true }
} ]"""
SUM = (["X FP32 [1]"], ["SUM FP32 [1]"])
TYPES = [f"{name} [-1]" for name in models.TYPES]
STATE_LENGTH = 1_000_000  # of the wide state, in FP32: 4 MB
SESSION = {
    "intra_op_thread_count": "3",
    "inter_op_thread_count": "4",
    "execution_mode": "1",
    "enable_mem_arena": "true",
    "enable_mem_pattern": "0",
    "memory.enable_memory_arena_shrinkage": "cpu:0",
    "session.set_denormal_as_zero": "1",
    "session.use_device_allocator_for_initializers": "1",
    "execute_delay_ms": "3",
}
# A batch goes as soon as it is full; on a busy machine its requests may come slowly.
QUEUE = """dynamic_batching {
  preferred_batch_size: [ 3, 6 ] max_queue_delay_microseconds: 3000000
}"""

# Name: the model's file, its config.pbtxt.
GOOD: dict[str, tuple[bytes | None, str]] = {
    "batched": (models.add(), xy()),
    "unbatched": (
        models.add(shape=(2, 3)),
        xy(batch=0, x="FP32 [2,3]", y="FP32 [2,3]"),
    ),
    "scalar": (models.add(shape=()), xy(batch=0, x="FP32 [1]", y="FP32 [1]")),
    "batch_of_scalars": (
        models.add(shape=("n",)),
        xy(x="FP32 [1] reshape { shape: [] }", y="FP32 [1] reshape { shape: [] }"),
    ),
    "reshaped": (
        models.reshape([0, 4], ("n", 2, 2), ("n", 4)),
        xy(
            x="FP32 [4] reshape { shape: [2,2] }", y="FP32 [2,2] reshape { shape: [4] }"
        ),
    ),
    "densenet_like": (
        models.reshape([1, 6, 1, 1], (1, 2, 3), (1, 6, 1, 1)),
        xy(
            batch=0,
            x="FP32 [2,3] reshape { shape: [1,2,3] }",
            y="FP32 [6] reshape { shape: [1,6,1,1] } label_filename: 'labels.txt'",
        ),
    ),
    "variable": (models.add(shape=("n", "m")), xy(x="FP32 [-1]", y="FP32 [-1]")),
    "loses_rows": (
        models.loses_rows(),
        config(["X FP32 [3]"], ["LOST FP32 [6]", "SAME FP32 [3]"]),
    ),
    "every_type": (
        models.every_type(),
        config(
            [f"X_{n} {t}" for n, t in zip(models.TYPES, TYPES, strict=True)],
            [f"Y_{n} {t}" for n, t in zip(models.TYPES, TYPES, strict=True)],
        ),
    ),
    "versions": (
        None,
        xy("version_policy: { all {} } default_model_filename: 'add.onnx'"),
    ),
    "lookup": (
        models.lookup(),
        config(["X INT64 [1]"], ["SQUARE INT64 [1]", "SAME INT64 [1]"], QUEUE),
    ),
    "ragged": (
        models.counts_rows(),
        config(
            ["X FP32 [-1] allow_ragged_batch: true"],
            ["Y FP32 [-1]", "ROWS INT64 [1]"],
            QUEUE,
        ),
    ),
    "texts": (
        models.identity("STRING", ("n", 1)),
        xy(QUEUE, x="STRING [1]", y="STRING [1]"),
    ),
    "session": (
        models.add(),
        xy("optimization { graph { level: -1 } }" + parameters(**SESSION)),
    ),
    "one_thread": (models.add(), xy(parameters(intra_op_thread_count="1"))),
    "two": (
        models.add(),
        xy("""instance_group [ { kind: KIND_CPU count: 2 } ]
            model_warmup [ { name: "zeros" batch_size: 8 inputs { key: "X" value: {
            data_type: TYPE_FP32 dims: [3] zero_data: true } } } ]"""),
    ),
    "controls": (
        models.sequence(
            ("START", "INT32", ("n", 1)),
            ("END", "FLOAT", ("n", 1)),
            ("READY", "BOOL", ("n", 1)),
            ("CORRID", "UINT64", ("n", 1)),
        ),
        config(
            ["INPUT INT32 [1]"],
            [
                "START_SEEN INT32 [1]",
                "END_SEEN FP32 [1]",
                "READY_SEEN BOOL [1]",
                "CORRID_SEEN UINT64 [1]",
            ],
            "sequence_batching { oldest { } "
            + control("START", "START")
            + control("END", "END", "fp32_false_true: [ 0, 1 ]")
            + control("READY", "READY", "bool_false_true: [ false, true ]")
            + control("CORRID", "CORRID", "data_type: TYPE_UINT64")
            + "}",
        ),
    ),
    "sum_direct": (
        models.running_sum(),
        config(*SUM, f"sequence_batching {{ direct {{ }} {STATE} }}"),
    ),
    "sum_oldest": (
        models.running_sum(),
        config(*SUM, f"sequence_batching {{ oldest {{ }} {STATE} }}"),
    ),
    "sum_wide": (
        models.running_sum(STATE_LENGTH),
        config(
            *SUM,
            f"""sequence_batching {{ oldest {{ max_candidate_sequences: 64 }}
            max_sequence_idle_microseconds: 500000 {STATE} }}""".replace(
                "dims: [1]", f"dims: [{STATE_LENGTH}]"
            ),
        ),
    ),
}
CONTROL = f"sequence_batching {{ {control('START', 'START')} }}"
SEEN = (["INPUT INT32 [1]"], ["INPUT_SEEN INT32 [1]"])
CONFIG = "the model configuration specifies"
BATCH = "the first for the batch"
# Name: the model's file, its config.pbtxt, what the server's reason has to say.
BAD: dict[str, tuple[bytes | None, str, str]] = {
    "wrong_input_dims": (
        models.identity(),
        xy(x="FP32 [4]"),
        f"tensor 'X': the model expects 2 dimensions (shape [-1, 3]) but {CONFIG} "
        f"2 dimensions (shape [-1, 4], {BATCH})",
    ),
    "wrong_output_dims": (
        models.identity(),
        xy(y="FP32 [3,1]"),
        f"tensor 'Y': the model expects 2 dimensions (shape [-1, 3]) but {CONFIG} "
        f"3 dimensions (shape [-1, 3, 1], {BATCH})",
    ),
    "wrong_reshape": (
        models.identity(),
        xy(x="FP32 [6] reshape { shape: [2,3] }"),
        f"tensor 'X': the model expects 2 dimensions (shape [-1, 3]) but {CONFIG} "
        f"3 dimensions (shape [-1, 2, 3], {BATCH})",
    ),
    "not_a_scalar": (
        models.identity(shape=()),
        xy(batch=0, x="FP32 [2]", y="FP32 [1]"),
        f"tensor 'X': the model expects 0 dimensions (shape []) but {CONFIG} "
        "1 dimensions (shape [2])",
    ),
    "promised_output": (
        models.identity(shape=("n", "m")),
        xy(),
        f"tensor 'Y': the model expects 2 dimensions (shape [-1, -1]) but {CONFIG} "
        f"2 dimensions (shape [-1, 3], {BATCH})",
    ),
    "wrong_input_type": (
        models.identity(),
        xy(x="INT32 [3]"),
        f"tensor 'X': the model expects data type TYPE_FP32 but {CONFIG} TYPE_INT32",
    ),
    "wrong_output_type": (
        models.identity("STRING"),
        xy(x="STRING [3]"),
        f"tensor 'Y': the model expects data type TYPE_STRING but {CONFIG} TYPE_FP32",
    ),
    "bfloat16": (
        models.identity("BFLOAT16"),
        xy(x="BF16 [3]", y="BF16 [3]"),
        "tensor 'X': the model expects data type tensor(bfloat16) but "
        f"{CONFIG} TYPE_BF16",
    ),
    "wrong_input_name": (
        models.identity(),
        config(["Z FP32 [3]"], ["Y FP32 [3]"]),
        f"tensor 'Z': {CONFIG} this input but the model has 'X'",
    ),
    "wrong_output_name": (
        models.identity(),
        config(["X FP32 [3]"], ["Z FP32 [3]"]),
        f"tensor 'Z': {CONFIG} this output but the model has 'Y'",
    ),
    "missing_input": (
        models.sequence(("START", "INT32", ("n", 1))),
        config(*SEEN),
        f"tensor 'START': the model needs it but {CONFIG} only 'INPUT'",
    ),
    "missing_control": (
        models.sequence(),
        config(*SEEN, CONTROL),
        f"tensor 'START': {CONFIG} this input but the model has 'INPUT'",
    ),
    "wrong_control": (
        models.sequence(("START", "FLOAT", ("n", 1))),
        config(*SEEN, CONTROL),
        f"tensor 'START': the model expects data type TYPE_FP32 but {CONFIG} "
        "TYPE_INT32",
    ),
    "wrong_state": (
        models.running_sum(),
        config(*SUM, f"sequence_batching {{ {STATE} }}".replace("NEXT", "LAST")),
        f"tensor 'LAST': {CONFIG} this output but the model has 'SUM', 'NEXT'",
    ),
    "fixed_batch": (
        models.identity(shape=(1, 3)),
        xy(),
        f"tensor 'X': the model expects shape [1, 3] but {CONFIG} max_batch_size 8: "
        "set it to 0, for the model's first dimension is not variable",
    ),
    "no_file": (None, xy(), "model 'no_file': there is no file '/"),
    "corrupt": (b"not ONNX", xy(), "model 'corrupt': onnxruntime error 7: Load model"),
    "newer_ir": (
        models.identity(ir_version=99),
        xy(),
        "failed:Unsupported model IR version: 99",
    ),
    "bad_threads": (
        models.identity(),
        xy(parameters(intra_op_thread_count="many")),
        "parameter intra_op_thread_count is 'many' but must be a whole number from 0",
    ),
    "bad_level": (
        models.identity(),
        xy("optimization { graph { level: 7 } }"),
        "parameter optimization.graph.level is '7' but must be one of 0, -1, 1, 2",
    ),
    "no_arena_to_shrink": (
        models.identity(),
        xy(parameters(**SESSION | {"enable_mem_arena": "0"})),
        "parameter memory.enable_memory_arena_shrinkage needs enable_mem_arena",
    ),
    "tensorrt": (
        models.identity(),
        xy(accelerator("gpu", "tensorrt")),
        "gpu_execution_accelerator 'tensorrt' cannot be honoured on a CPU instance",
    ),
    "openvino": (
        models.identity(),
        xy(accelerator("cpu", "openvino")),
        "'openvino' is asked for, but onnxruntime has no OpenVINOExecutionProvider",
    ),
    "decoupled": (
        models.identity(),
        xy("model_transaction_policy { decoupled: true }"),
        "an ONNX model answers once, so decoupled is no use",
    ),
    "batch_input": (
        models.identity(),
        xy("""batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "N"
           data_type: TYPE_FP32 source_input: "X" } ]"""),
        "model 'batch_input': the embedded server does not support batch_input",
    ),
    "gpu": (
        models.identity(),
        xy("instance_group [ { kind: KIND_GPU } ]"),
        "KIND_GPU",
    ),
}

# Name: the model's file, its config.pbtxt, the configuration that comes of them.
PARTIAL: dict[str, tuple[bytes, str | None, dict[str, object]]] = {
    "absent": (models.identity(), None, {"max_batch_size": 4, "dynamic": True}),
    "names_only": (
        models.identity("STRING", ("n", "m")),
        "backend: 'onnxruntime' input [ { name: 'X' } ] output [ { name: 'Y' } ]",
        {
            "max_batch_size": 4,
            "dynamic": True,
            "dims": [-1],
            "data_type": "TYPE_STRING",
        },
    ),
    "no_outputs": (
        models.identity(),
        "backend: 'onnxruntime' max_batch_size: 16 " + tensors("input", "X FP32 [3]"),
        {"max_batch_size": 16, "dynamic": True},
    ),
    "no_inputs": (
        models.identity(),
        "platform: 'onnxruntime_onnx' max_batch_size: 1 "
        + tensors("output", "Y FP32 [3]"),
        {"max_batch_size": 1, "dynamic": False},
    ),
    "fixed": (
        models.identity(shape=(2, 3)),
        None,
        {"max_batch_size": 0, "dynamic": False, "dims": [2, 3]},
    ),
    "a_scalar": (
        models.identity(shape=()),
        None,
        {"max_batch_size": 0, "dynamic": False, "dims": [1]},
    ),
    "scalars": (
        models.identity(shape=("n",)),
        None,
        {"max_batch_size": 4, "dynamic": True, "dims": [1], "reshape": {"shape": []}},
    ),
    "complete": (models.identity(), xy(batch=2), {"max_batch_size": 2}),
}


@pytest.fixture(scope="module")
def servers() -> Iterator[list[server.Triton]]:
    """The servers of this file, which end at the same time: each takes seconds."""
    started: list[server.Triton] = []
    yield started
    with ThreadPoolExecutor() as pool:
        list(pool.map(server.Triton.stop, started))


@pytest.fixture(scope="module")
def triton(
    servers: list[server.Triton], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[http.InferenceServerClient]:
    """A server that has loaded the good models, and has refused the bad ones."""
    repository = tmp_path_factory.mktemp("complete")
    for name, (weights, text, *_) in {**GOOD, **BAD}.items():
        models.store(repository, name, weights, text.replace("'", '"'))
    for version in 1, 2:
        weights = models.add(amount=version)
        models.store(repository, "versions", weights, None, version, "add.onnx")
    (repository / "densenet_like" / "labels.txt").write_text("\n".join("abcdef"))
    flags = {"disable_auto_complete_config": True, "log_verbose": 1}
    yield from served(repository, servers, **flags)


@pytest.fixture(scope="module")
def completed(
    servers: list[server.Triton], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[http.InferenceServerClient]:
    """A server that has to find out what its models' configurations leave out."""
    repository = tmp_path_factory.mktemp("partial")
    for name, (weights, text, _) in PARTIAL.items():
        models.store(repository, name, weights, text and text.replace("'", '"'))
    models.store(repository, "overridden", models.identity(), None)
    fixed = models.identity(shape=(2, 3))
    models.store(repository, "cannot_batch", fixed, "max_batch_size: 16")
    loaded = [*PARTIAL, "cannot_batch"]
    yield from served(
        repository, servers, model_control_mode="explicit", load_model=loaded
    )


def served(
    repository: Path, servers: list[server.Triton], **flags: bool | str | list[str]
) -> Iterator[http.InferenceServerClient]:
    servers.append(server.start(repository, exit_on_error=False, **flags))
    with http.InferenceServerClient(servers[-1].http, concurrency=8) as client:
        client.server = servers[-1]
        yield client


def infer(
    client: http.InferenceServerClient, model: str, array: np.ndarray, **options: Any
) -> np.ndarray:
    """Send an array as X, and return Y."""
    return client.infer(model, [given("X", array)], **options).as_numpy("Y")


def given(name: str, array: np.ndarray) -> http.InferInput:
    bits = 8 * array.dtype.itemsize
    kind = {"O": "BYTES", "b": "BOOL", "f": f"FP{bits}", "i": f"INT{bits}"}
    tensor = http.InferInput(
        name, array.shape, kind.get(array.dtype.kind, f"UINT{bits}")
    )
    return tensor.set_data_from_numpy(array)


def floats(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def at_once(
    client: http.InferenceServerClient, model: str, arrays: list[np.ndarray]
) -> list[http.InferResult | InferenceServerException]:
    """Send arrays as X together; check that the server made one execution of them."""
    before = executions(client, model)
    pending = [client.async_infer(model, [given("X", array)]) for array in arrays]
    answers = []
    for request in pending:
        try:
            answers.append(request.get_result())
        except InferenceServerException as error:
            answers.append(error)
    assert executions(client, model) == before + 1
    return answers


def executions(client: http.InferenceServerClient, model: str) -> int:
    return client.get_inference_statistics(model)["model_stats"][0]["execution_count"]


def stub_of(client: http.InferenceServerClient, model: str) -> psutil.Process:
    """Find the process of a model's only instance."""
    stubs = process_of(client.server).children()
    (stub,) = (stub for stub in stubs if f"{model}_0_0" in " ".join(stub.cmdline()))
    return stub


@pytest.mark.parametrize("name", BAD)
def test_a_load_is_refused_with_the_reason(triton, name):
    index = {model["name"]: model for model in triton.get_model_repository_index()}
    assert index[name]["state"] == "UNAVAILABLE"
    assert BAD[name][2] in index[name]["reason"]


@pytest.mark.parametrize("name", GOOD)
def test_a_model_loads_with_its_unchanged_configuration(triton, name):
    index = {model["name"]: model for model in triton.get_model_repository_index()}
    assert triton.is_model_ready(name), index[name]["reason"]


@pytest.mark.parametrize(
    ("name", "shape"),
    {
        "batched": (5, 3),
        "unbatched": (2, 3),
        "scalar": (1,),
        "batch_of_scalars": (5, 1),
        "variable": (5, 7),
        "session": (5, 3),
        "two": (5, 3),
    }.items(),
)
def test_an_answer_has_the_shape_and_the_numbers_of_the_graph(triton, name, shape):
    x = floats(*shape)
    y = infer(triton, name, x)
    assert y.shape == shape
    np.testing.assert_array_equal(y, x + 1)


def test_every_instance_is_warmed_up_before_the_model_is_ready(triton):
    log = triton.server.log(1_000_000)
    ready = log.index("successfully loaded 'two'")
    for instance in "two_0_0", "two_0_1":
        sample = f"model 'two' instance {instance} is running warmup sample 'zeros'"
        assert log.index(sample) < ready


def test_an_empty_dimension_comes_back_empty(triton):
    assert infer(triton, "variable", floats(2, 0)).shape == (2, 0)


def test_inputs_and_outputs_are_reshaped_between_the_client_and_the_graph(triton):
    x = floats(5, 4)
    np.testing.assert_array_equal(infer(triton, "reshaped", x), x.reshape(5, 2, 2))
    x = floats(2, 3)
    np.testing.assert_array_equal(infer(triton, "densenet_like", x), x.reshape(6))


def test_every_tensor_type_passes_through_unchanged(triton):
    numbers = np.array([[0, 1, 2], [3, 100, 127]])
    sent = {
        name: numbers.astype(f"{name.lower()}")
        for name in models.TYPES
        if "INT" in name
    }
    sent |= {
        f"FP{bits}": (numbers / 4).astype(f"f{bits // 8}") for bits in (16, 32, 64)
    }
    sent["BOOL"] = numbers > 2
    sent["STRING"] = np.array([["", "a", "naïve"], ["日本", "\x00 zero", " "]], object)
    assert set(sent) == set(models.TYPES)
    answer = triton.infer("every_type", [given(f"X_{n}", a) for n, a in sent.items()])
    # Some of NVIDIA's example clients tell the outputs by their places.
    places = [output["name"] for output in answer.get_response()["outputs"]]
    assert places == [f"Y_{name}" for name in models.TYPES]
    for name, array in sent.items():
        received = answer.as_numpy(f"Y_{name}")
        if name == "STRING":
            received = np.vectorize(bytes.decode, otypes=[object])(received)
        assert received.dtype == array.dtype
        np.testing.assert_array_equal(received, array)


def test_every_version_has_its_own_graph_in_the_file_that_is_named(triton):
    x = floats(1, 3)
    for version in "1", "2":
        y = infer(triton, "versions", x, model_version=version)
        np.testing.assert_array_equal(y, x + int(version))


def test_classes_come_with_the_labels_of_the_label_file(triton):
    wanted = [http.InferRequestedOutput("Y", class_count=2)]
    y = infer(triton, "densenet_like", floats(2, 3), outputs=wanted)
    assert y.tolist() == [b"5.000000:5:f", b"4.000000:4:e"]


def test_an_output_that_nobody_asks_for_does_not_come_back(triton):
    same = [http.InferRequestedOutput("SAME")]
    answer = triton.infer("lookup", [given("X", np.array([[3]]))], outputs=same)
    assert answer.as_numpy("SAME").tolist() == [[3]]
    assert answer.as_numpy("SQUARE") is None


def test_an_output_is_fetched_only_for_those_who_ask_for_it(triton):
    x = [given("X", floats(2, 3))]
    same = [http.InferRequestedOutput("SAME")]
    assert triton.infer("loses_rows", x, outputs=same).as_numpy("SAME").shape == (2, 3)
    with pytest.raises(
        InferenceServerException, match="'LOST' has 1 rows for a batch of 2"
    ):
        triton.infer("loses_rows", x)


def test_requests_of_one_execution_need_one_run_for_each_shape(triton):
    parts = [floats(1, 2), floats(1, 5), floats(2, 2), floats(2, 2)]
    answers = at_once(triton, "ragged", parts)
    for part, answer in zip(parts, answers, strict=True):
        np.testing.assert_array_equal(answer.as_numpy("Y"), part + 1)
    rows_of_the_run = [answer.as_numpy("ROWS").tolist() for answer in answers]
    assert rows_of_the_run == [[[5]], [[1]], [[5], [5]], [[5], [5]]]


def test_a_request_that_fails_in_the_graph_fails_alone(triton):
    answers = at_once(triton, "lookup", [np.array([[n]]) for n in (1, 99, 3)])
    assert answers[0].as_numpy("SQUARE").tolist() == [[1]]
    assert "onnxruntime error 2" in str(answers[1])
    assert answers[2].as_numpy("SQUARE").tolist() == [[9]]


def test_a_string_that_is_not_utf8_fails_alone(triton):
    texts = [["good"]], [[b"\xff\xfe"]], [["also good"]]
    answers = at_once(triton, "texts", [np.array(text, object) for text in texts])
    assert answers[0].as_numpy("Y").tolist() == [[b"good"]]
    assert "input 'X' cannot be read: 'utf-8' codec can't decode" in str(answers[1])
    assert answers[2].as_numpy("Y").tolist() == [[b"also good"]]


def test_the_sequence_batcher_controls_reach_the_graph(triton):
    for start, end in (True, False), (False, False), (False, True):
        answer = triton.infer(
            "controls",
            [given("INPUT", np.array([[7]], np.int32))],
            sequence_id=42,
            sequence_start=start,
            sequence_end=end,
        )
        assert answer.as_numpy("START_SEEN").tolist() == [[int(start)]]
        assert answer.as_numpy("END_SEEN").tolist() == [[float(end)]]
        assert answer.as_numpy("READY_SEEN").tolist() == [[True]]
        assert answer.as_numpy("CORRID_SEEN").tolist() == [[42]]


@pytest.mark.parametrize("name", ["sum_direct", "sum_oldest"])
def test_each_sequence_has_a_state_of_its_own(triton, name):
    def total(sequence: int | str, number: int, **flags: bool) -> float:
        x = [given("X", np.array([[number]], np.float32))]
        answer = triton.infer(name, x, sequence_id=sequence, **flags)
        return answer.as_numpy("SUM").item()

    assert total(1, 1, sequence_start=True) == 1
    assert total("two", 10, sequence_start=True) == 10
    assert total(1, 2) == 3
    assert total("two", 20) == 30
    assert total(1, 3, sequence_end=True) == 6
    assert total("two", 30, sequence_end=True) == 60
    assert total(1, 4, sequence_start=True, sequence_end=True) == 4


def test_the_state_of_a_sequence_that_was_left_idle_is_forgotten(triton):
    def memory_after(sequences: range) -> int:
        for sequence in sequences:
            x = [given("X", np.array([[1]], np.float32))]
            options = {"sequence_id": sequence, "sequence_start": True}
            assert triton.infer("sum_wide", x, **options).as_numpy("SUM") == 1
        return stub_of(triton, "sum_wide").memory_full_info().uss

    before = memory_after(range(1, 11))
    time.sleep(1.1)  # more than twice max_sequence_idle_microseconds
    states = (memory_after(range(11, 21)) - before) / (4 * STATE_LENGTH)
    assert states < 5


def test_thread_counts_are_kept(triton):
    one = stub_of(triton, "one_thread").num_threads()
    three_and_four = stub_of(triton, "session").num_threads()
    assert three_and_four - one == (3 - 1) + (4 - 1)


def test_the_log_is_free_of_what_onnxruntime_prints(triton):
    assert "onnxruntime:" not in triton.server.log(100_000)


@pytest.mark.parametrize("name", PARTIAL)
def test_what_a_configuration_leaves_out_is_read_off_the_graph(completed, name):
    expected = {"dims": [3], "data_type": "TYPE_FP32", "dynamic": False}
    expected |= PARTIAL[name][2]
    found = completed.get_model_config(name)
    assert found["backend"] == "onnxruntime"
    assert found["max_batch_size"] == expected["max_batch_size"]
    assert ("dynamic_batching" in found) == expected["dynamic"]
    for kind, tensor in ("input", "X"), ("output", "Y"):
        (entry,) = found[kind]
        assert entry["name"] == tensor
        assert entry["data_type"] == expected["data_type"]
        assert entry["dims"] == expected["dims"]
        assert entry.get("reshape") == expected.get("reshape")


def test_a_model_without_a_configuration_answers(completed):
    for name, shape in ("absent", (4, 3)), ("scalars", (4, 1)), ("a_scalar", (1,)):
        x = floats(*shape)
        np.testing.assert_array_equal(infer(completed, name, x), x)


def test_a_load_may_override_the_configuration(completed):
    completed.load_model("overridden", config='{"max_batch_size": "16"}')
    found = completed.get_model_config("overridden")
    assert found["max_batch_size"] == 16
    assert found["input"][0]["dims"] == [3]
    assert infer(completed, "overridden", floats(16, 3)).shape == (16, 3)


def test_batching_that_the_graph_cannot_do_is_refused_by_completion_too(completed):
    index = {m["name"]: m for m in completed.get_model_repository_index()}
    assert "set it to 0, for the model's first" in index["cannot_batch"]["reason"]


# Modules of the backend that know nothing of Triton.


def configuration(count: int = 1, level: int = 0, **given: str) -> Configuration:
    return Configuration(
        {
            "name": "m",
            "max_batch_size": 8,
            "default_model_filename": "",
            "instance_group": [{"count": count, "gpus": []}],
            "optimization": {"graph": {"level": level}},
            "parameters": {n: {"string_value": value} for n, value in given.items()},
        }
    )


def test_parameters_reach_the_session():
    options = session.session_options(configuration(**SESSION))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 4
    assert options.execution_mode.name == "ORT_PARALLEL"
    assert options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


SHRINKAGE = "memory.enable_memory_arena_shrinkage"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("inter_op_thread_count", "-1", "a whole number from 0 up"),
        ("execution_mode", "2", "one of 0, 1"),
        ("enable_mem_arena", "maybe", "one of 1, 0, true, false"),
        ("enable_mem_pattern", "", "one of 1, 0, true, false"),
        ("session.set_denormal_as_zero", "yes", "one of 1, 0, true, false"),
        (SHRINKAGE, "gpu:0", "one of cpu:0"),
    ],
)
def test_a_bad_parameter_is_refused_with_what_it_may_be(name, value, allowed):
    config = configuration(**{name: value})
    message = f"model 'm': parameter {name} is '{value}' but must be {allowed}"
    with pytest.raises(Refusal, match=f"^{message}"):
        _ = session.session_options(config), session.run_options(config, [])


@pytest.mark.parametrize(
    ("level", "meaning"),
    [(0, "ALL"), (-1, "BASIC"), (1, "EXTENDED"), (2, "DISABLE_ALL")],
)
def test_the_graph_level_means_what_the_cpp_backend_says(level, meaning):
    options = session.session_options(configuration(level=level))
    assert options.graph_optimization_level.name.endswith(meaning)


def test_threads_of_several_instances_do_not_spin_unless_counted():
    def spins(count: int, *, shared: bool = False, **given: str) -> list[bool]:
        """Tell whether they do within a run, and between runs."""
        config = configuration(count, **given)
        options = session.session_options(config, shared=shared)
        within, between = (entry(options, name) for name in SPINS)
        return [within != "0", within != "0" and between != "1"]

    assert spins(1) == [True, True]
    assert spins(2) == [False, False]
    assert spins(2, shared=True) == [True, False]
    assert spins(2, intra_op_thread_count="1") == [True, True]
    assert spins(2, **{session.SPINNING[0]: "1"}) == [True, True]


SPINS = (session.SPINNING[0], session.STOP)


def entry(options, name: str) -> str:
    try:
        return options.get_session_config_entry(name)
    except RuntimeError:  # nobody has set it, so onnxruntime's default holds
        return ""


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("cores", "count", "given", "threads"),
    [
        (2, 2, {}, 1),
        (8, 2, {}, 4),
        (2, 4, {}, 1),
        (2, 1, {}, None),
        (1, 2, {}, None),
        (2, 2, {"intra_op_thread_count": "2"}, None),
    ],
)
def test_instances_beside_each_other_share_the_cores_unless_counted(
    monkeypatch, cores, count, given, threads
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    config = configuration(count, **given)
    assert session.shared_cores(config, [(CPU, {})]) == threads


def test_a_run_takes_all_cores_unless_another_instance_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    (tmp_path / "model.onnx").write_bytes(repository.simple().SerializeToString())
    one, other = (
        sharing.Sessions(configuration(2), tmp_path, [(CPU, {})]) for _ in range(2)
    )

    def takes(sessions):
        with sessions.fitting() as taken:
            threads = taken.get_session_options().intra_op_num_threads
        return "its share" if threads == 1 else "all"

    assert [takes(one), takes(other), takes(one)] == ["all", "all", "all"]
    with one.fitting():
        assert takes(other) == "its share"
    # The other takes several looks to believe that this one is done.
    shared = sharing.QUIET_RUNS * ["its share"]
    assert [takes(other) for _ in range(4)] == [*shared, "all"]


def on_gpu(repository: Path, text: str = "") -> dict[str, str]:
    """Give the arguments of an instance on the GPU with number 1."""
    (repository / "config.pbtxt").write_text(text)
    return {
        "model_instance_kind": "GPU",
        "model_instance_device_id": "1",
        "model_repository": str(repository),
    }


def test_a_gpu_instance_runs_on_cuda_and_its_own_device(tmp_path):
    config = configuration(gpu_mem_limit="1000", arena_extend_strategy="1")
    expected = {
        "gpu_mem_limit": "1000",
        "arena_extend_strategy": "kSameAsRequested",
        "device_id": "1",
    }
    found = session.execution_providers(config, on_gpu(tmp_path), [CUDA, CPU])
    assert found == [(CUDA, expected), (CPU, {})]


def test_kind_gpu_without_cuda_is_refused(tmp_path):
    args = on_gpu(tmp_path, "instance_group [ { kind: KIND_GPU } ]")
    with pytest.raises(Refusal, match="KIND_GPU is asked for, but onnxruntime has no"):
        session.execution_providers(configuration(), args, [CPU])


def test_kind_auto_without_cuda_runs_on_the_cpu(tmp_path):
    args = on_gpu(tmp_path, "# KIND_GPU\ninstance_group [ { count: 1 } ]")
    found = session.execution_providers(configuration(), args, [CPU])
    assert found == [(CPU, {})]


@pytest.mark.skipif(
    CUDA in session.ort.get_available_providers(), reason="CUDA may be able to start"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_cannot_start_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(models.identity())
    with pytest.raises(Refusal, match="onnxruntime could not start its CUDAExecution"):
        session.open_session(configuration(), tmp_path, [(CUDA, {}), (CPU, {})])
