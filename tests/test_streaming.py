"""What lesson 11 says of decoupled models, on a live server."""

import json
import queue
import re
import threading
from http.client import HTTPConnection

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from conftest import QUICK, process_of, wait_for
from tritonclient.utils import InferenceServerException

from helpers import server
from helpers.repository import DATA


@pytest.fixture(scope="module")
def triton():
    flags = {"model_control_mode": "explicit", "load_model": "babbler", **QUICK}
    with server.start(DATA / "stream_repository", **flags) as running:
        yield running


@pytest.fixture
def client(triton):
    with grpcclient.InferenceServerClient(triton.grpc) as connected:
        yield connected
        connected.stop_stream(cancel_requests=True)


def word(text="The"):
    tensor = grpcclient.InferInput("word", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text], dtype=object))
    return [tensor]


def answers_of(client, end=True, **parameters):
    """Ask once, and return what reached the callback."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer(
        "babbler", word(), parameters=parameters, enable_empty_final_response=end
    )
    client.stop_stream()
    return [answers.get() for _ in range(answers.qsize())]


def is_final(answer):
    return answer.get_response().parameters["triton_final_response"].bool_param


def words_sent(triton, count):
    """Return how far the model has got, or None while it is at it."""
    said = re.findall(rf"(\d+) of {count} words sent", triton.log(1000))
    return int(said[-1]) if said else None


def open_stream(triton, **fields):
    host, port = triton.http.split(":")
    connection = HTTPConnection(host, int(port))
    path = "/v2/models/babbler/generate_stream"
    connection.request("POST", path, json.dumps({"word": "The", **fields}))
    return connection, connection.getresponse()


def test_the_empty_final_answer_comes_only_to_those_who_ask_for_it(client):
    with_end = answers_of(client, count=5)
    assert [is_final(answer) for answer in with_end] == [False] * 5 + [True]
    assert with_end[-1].as_numpy("next") is None
    without = answers_of(client, end=False, count=5)
    assert [is_final(answer) for answer in without] == [False] * 5


def test_an_error_comes_after_the_words_before_it_and_ends_nothing_else(client):
    *words, error, end = answers_of(client, count=50, taboo="of")
    assert [answer.as_numpy("next")[0] for answer in words] == [b"late", b"owner"]
    assert isinstance(error, InferenceServerException)
    assert error.message() == "I will not say 'of'"
    assert is_final(end)
    assert len(answers_of(client, count=5)) == 6


def test_a_plain_request_to_a_decoupled_model_is_refused(client):
    with pytest.raises(InferenceServerException, match="decoupled transaction policy"):
        client.infer("babbler", word())


def test_a_word_that_the_text_has_not_is_answered_too(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer("babbler", word("Triton"))
    client.stop_stream()
    assert answers.qsize() == 10  # the default of the parameter `count`


def test_a_cancelled_stream_stops_the_work_and_counts_as_a_success(triton, client):
    answers = queue.Queue()
    before = client.get_inference_statistics("babbler").model_stats[0]
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer("babbler", word(), parameters={"count": 3_000_001})
    answers.get(timeout=30)
    client.stop_stream(cancel_requests=True)
    assert wait_for(lambda: words_sent(triton, 3_000_001))
    assert words_sent(triton, 3_000_001) < 3_000_001

    def change():
        after = client.get_inference_statistics("babbler").model_stats[0]
        return [
            getattr(after.inference_stats, kind).count
            - getattr(before.inference_stats, kind).count
            for kind in ("success", "fail")
        ]

    assert wait_for(lambda: change() == [1, 0])


def test_closing_an_http_stream_stops_the_work(triton):
    connection, answer = open_stream(triton, count=3_000_002)
    assert answer.status == 200
    assert b"late" in answer.readline()
    answer.close()
    connection.close()
    assert wait_for(lambda: words_sent(triton, 3_000_002))
    assert words_sent(triton, 3_000_002) < 3_000_002


def test_a_slow_reader_does_not_slow_the_model_and_fills_the_servers_memory(
    triton, client
):
    gate, read = threading.Event(), queue.Queue()
    client.start_stream(lambda result, error: (read.put(result), gate.wait()))
    server_process = psutil.Process(process_of(triton).pid)
    before = server_process.memory_info().rss
    client.async_stream_infer("babbler", word(), parameters={"count": 20_003})
    read.get(timeout=30)
    assert wait_for(lambda: words_sent(triton, 20_003) == 20_003, 120)
    assert read.empty()
    assert server_process.memory_info().rss > before + 50 * 20_003
    gate.set()
    client.stop_stream()
    assert read.qsize() == 20_002
