"""What lesson 08 says in its tables and warnings about clients, on a live server."""

import contextlib
import json
import queue
import time
from collections.abc import Iterator
from types import ModuleType
from urllib.request import urlopen

import gevent
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import tritonclient.utils.shared_memory as shm
from conftest import wait_for
from course import ROOT
from tritonclient.grpc._client import CallContext
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from helpers import server

WORDS = np.array([["espresso", "cup"]], object)


@pytest.fixture(scope="module")
def triton() -> Iterator[server.Triton]:
    """A server with `echo` twice: as it is, and as `plain` without a batcher."""
    repository = ROOT / "data" / "echo_repository"
    control = {"model_control_mode": "explicit", "load_model": "echo"}
    with server.start(repository, **control) as triton:
        with grpcclient.InferenceServerClient(triton.grpc) as client:
            config = client.get_model_config("echo", as_json=True)["config"]
            config |= {"name": "plain"}
            del config["dynamic_batching"]
            code = (repository / "echo" / "1" / "model.py").read_bytes()
            files = {"file:1/model.py": code}
            client.load_model("plain", config=json.dumps(config), files=files)
        yield triton


@pytest.fixture
def rpc(triton: server.Triton) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(triton.grpc) as client:
        yield client


def put(array: np.ndarray = WORDS, module: ModuleType = grpcclient) -> list:
    tensor = module.InferInput("WORDS", array.shape, "BYTES")
    return [tensor.set_data_from_numpy(array)]


def hold(ms: int) -> dict:
    return {"parameters": {"hold_ms": ms}}


def report(rpc: grpcclient.InferenceServerClient, model: str) -> list[bytes]:
    answer = rpc.infer(model, put(), parameters={"report": True})
    return answer.as_numpy("WORDS")[0].tolist()


def metric(triton: server.Triton, name: str, model: str, more: str = "") -> int:
    with urlopen(f"http://{triton.metrics}/metrics") as page:
        lines = page.read().decode().splitlines()
    start = f'nv_inference_{name}{{model="{model}",{more}'
    return sum(int(line.split()[-1]) for line in lines if line.startswith(start))


def pending(triton: server.Triton, model: str) -> int:
    return metric(triton, "pending_request_count", model)


def occupy(
    triton: server.Triton, rpc: grpcclient.InferenceServerClient, model: str
) -> CallContext:
    """Keep a model busy until the call that is returned is cancelled."""
    report(rpc, model)
    call = rpc.async_infer(model, put(), lambda result, error: None, **hold(60_000))
    time.sleep(0.5)
    assert pending(triton, model) == 0
    return call


@pytest.mark.parametrize("model", ["plain", "echo"])
def test_http_given_up_in_the_queue_runs(triton, rpc, model):
    first = occupy(triton, rpc, model)
    impatient = httpclient.InferenceServerClient(triton.http, network_timeout=0.3)
    with impatient, pytest.raises(TimeoutError):
        impatient.infer(model, put(module=httpclient), **hold(0))
    first.cancel()
    assert wait_for(lambda: pending(triton, model) == 0)
    assert report(rpc, model) == [b"withdrawn", b"finished"]


@pytest.mark.parametrize(
    ("model", "ends"),
    [("plain", [b"withdrawn", b"withdrawn"]), ("echo", [b"withdrawn"])],
)
@pytest.mark.parametrize("by_timeout", [True, False])
def test_grpc_given_up_in_the_queue_runs_unless_a_batcher_drops_it(
    triton, rpc, model, ends, by_timeout
):
    first = occupy(triton, rpc, model)
    done: queue.SimpleQueue = queue.SimpleQueue()
    timeout = 1 if by_timeout else None
    second = rpc.async_infer(
        model,
        put(),
        lambda result, error: done.put(error.status()),
        client_timeout=timeout,
        **hold(0),
    )
    assert wait_for(lambda: pending(triton, model) == 1)
    if not by_timeout:
        second.cancel()
    status = "DEADLINE_EXCEEDED" if by_timeout else "CANCELLED"
    assert done.get(timeout=10) == f"StatusCode.{status}"
    time.sleep(1)
    assert pending(triton, model) == 1  # it keeps its place
    first.cancel()
    assert wait_for(lambda: pending(triton, model) == 0)
    assert report(rpc, model) == ends


def test_what_was_withdrawn_is_a_success_and_what_was_dropped_a_failure(triton, rpc):
    def counts() -> tuple[int, int]:
        success = metric(triton, "request_success", "echo")
        return success, metric(triton, "request_failure", "echo", 'reason="CANCELED"')

    first = occupy(triton, rpc, "echo")
    time.sleep(0.3)
    before = counts()
    second = rpc.async_infer("echo", put(), lambda result, error: None)
    assert wait_for(lambda: pending(triton, "echo") == 1)
    second.cancel()
    time.sleep(1)
    first.cancel()
    assert wait_for(lambda: counts() == (before[0] + 1, before[1] + 1))


def test_a_full_queue_refuses_and_counts_it_nowhere(triton, rpc):
    first = occupy(triton, rpc, "echo")
    for _ in range(4):
        rpc.async_infer("echo", put(), lambda result, error: None)
    assert wait_for(lambda: pending(triton, "echo") == 4)
    failures = metric(triton, "request_failure", "echo")
    with pytest.raises(InferenceServerException) as over_grpc:
        rpc.infer("echo", put())
    with (
        httpclient.InferenceServerClient(triton.http) as http,
        pytest.raises(InferenceServerException) as over_http,
    ):
        http.infer("echo", put(module=httpclient))
    assert over_grpc.value.status() == "StatusCode.UNAVAILABLE"
    assert over_http.value.status() == "503"
    time.sleep(0.3)
    assert metric(triton, "request_failure", "echo") == failures
    first.cancel()
    assert wait_for(lambda: pending(triton, "echo") == 0)


@pytest.mark.parametrize(
    ("model", "array", "parameters", "status", "code"),
    [
        ("echo", WORDS, {"hold_ms": "long"}, "500", "INTERNAL"),
        ("echo", WORDS[0], {}, "400", "INVALID_ARGUMENT"),
        ("nobody", WORDS, {}, "404", "NOT_FOUND"),
    ],
)
def test_errors_that_asking_again_would_not_mend(
    triton, rpc, model, array, parameters, status, code
):
    with httpclient.InferenceServerClient(triton.http) as http:
        for client, module in ((http, httpclient), (rpc, grpcclient)):
            with pytest.raises(InferenceServerException) as refusal:
                client.infer(model, put(array, module), parameters=parameters)
            wanted = status if client is http else f"StatusCode.{code}"
            assert refusal.value.status() == wanted


def test_nobody_listens():
    with (
        httpclient.InferenceServerClient("127.0.0.1:1") as http,
        pytest.raises(ConnectionRefusedError),
    ):
        http.is_server_live()
    with (
        grpcclient.InferenceServerClient("127.0.0.1:1") as rpc,
        pytest.raises(InferenceServerException) as refusal,
    ):
        rpc.is_server_live()
    assert refusal.value.status() == "StatusCode.UNAVAILABLE"


def test_a_queued_request_sees_what_is_written_into_its_region(triton, rpc):
    def write(word: bytes) -> None:
        array = serialize_byte_tensor(np.array([word], object))
        shm.set_shared_memory_region(region, [array])

    key = f"/test-clients-{triton.http.rpartition(':')[2]}"
    region = shm.create_shared_memory_region("desk", key, 64)
    with contextlib.ExitStack() as stack:
        stack.callback(shm.destroy_shared_memory_region, region)
        write(b"before")
        rpc.register_system_shared_memory("desk", key, 64)
        stack.callback(rpc.unregister_system_shared_memory, "desk")
        first = occupy(triton, rpc, "echo")
        tensor = grpcclient.InferInput("WORDS", [1, 1], "BYTES")
        tensor.set_shared_memory("desk", 10)
        done: queue.SimpleQueue = queue.SimpleQueue()
        rpc.async_infer("echo", [tensor], lambda result, error: done.put(result))
        assert wait_for(lambda: pending(triton, "echo") == 1)
        write(b"after!")
        first.cancel()
        assert done.get(timeout=10).as_numpy("WORDS").tolist() == [[b"after!"]]


def test_an_http_client_keeps_one_connection_until_it_is_closed(triton):
    def connections() -> int:
        port = int(triton.http.rpartition(":")[2])
        mine = psutil.Process().net_connections("tcp")
        return sum(c.raddr != () and c.raddr.port == port for c in mine)

    before = connections()
    with httpclient.InferenceServerClient(triton.http) as http:
        for _ in range(5):
            http.infer("echo", put(module=httpclient))
        assert connections() == before + 1
    assert wait_for(lambda: connections() == before)


@pytest.mark.parametrize(("concurrency", "sent"), [(1, 1), (3, 3)])
def test_concurrency_is_how_many_handles_are_really_sent_at_once(
    triton, rpc, concurrency, sent
):
    first = occupy(triton, rpc, "echo")
    with httpclient.InferenceServerClient(triton.http, concurrency=concurrency) as http:
        inputs = put(module=httpclient)
        handles = [http.async_infer("echo", inputs, **hold(0)) for _ in range(3)]
        # Its greenlets run while this one sleeps in gevent, not in `time`.
        assert wait_for(lambda: gevent.sleep(0.05) or pending(triton, "echo") == sent)
        gevent.sleep(0.3)
        assert pending(triton, "echo") == sent  # the others wait in the client
        first.cancel()
        for handle in handles:
            handle.get_result()
    assert len(report(rpc, "echo")) == 1 + 3
