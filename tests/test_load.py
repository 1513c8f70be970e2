"""The load generator counts what Triton's own statistics count, to the unit."""

import itertools
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from conftest import QUICK, process_of, python, wait_for, write_echo

from helpers import load, server


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    """A server with `echo`, and with `strict`, which fails on what is not positive."""
    repository = write_echo(tmp_path_factory.mktemp("repository"))
    write_echo(repository, "strict")
    model = repository / "strict" / "1" / "model.py"
    check = 'if not (array > 0).all():\n        raise ValueError("not positive")\n'
    code = model.read_text().replace("    return", f"    {check}    return", 1)
    model.write_text(code)
    with server.start(repository, **QUICK) as started:
        yield started


@pytest.fixture
def client(triton):
    with grpcclient.InferenceServerClient(triton.grpc) as client:
        yield client


def sender(client, model="echo", values=(1, 2, 3), datatype="FP32"):
    """Return an `ask`, which raises if Triton's answer is not what was sent."""
    sent = grpcclient.InferInput("IN", [len(values)], datatype)
    sent.set_data_from_numpy(np.array(values, np.float32))

    def ask():
        answer = client.infer(model, [sent]).as_numpy("OUT")
        assert answer.tolist() == list(values)

    return ask


def counted(client, model):
    """Return the server's (successes, failures) of a model."""
    stats = client.get_inference_statistics(model).model_stats[0].inference_stats
    return stats.success.count, stats.fail.count


def grew(client, model, before, success=0, failure=0):
    """Return whether the server counts so many more; it does so after it answers."""
    expected = (before[0] + success, before[1] + failure)
    return wait_for(lambda: counted(client, model) == expected, 5)


def no_clients_are_left():
    return all(t.name.find("(work)") < 0 for t in threading.enumerate())


@pytest.mark.parametrize("concurrency", [1, 4, 16])
@pytest.mark.parametrize("warm_up", [0, 5])
def test_it_makes_as_many_requests_as_the_server_counts(client, concurrency, warm_up):
    before = counted(client, "echo")
    found = load.closed_loop(sender(client), concurrency, 100, warm_up)
    assert found.count == len(found.latencies) == 100
    assert found.errors == Counter()
    assert grew(client, "echo", before, success=100 + warm_up)
    assert no_clients_are_left()


def test_fewer_requests_than_clients_are_enough(client):
    before = counted(client, "echo")
    assert load.closed_loop(sender(client), 16, requests=3, warm_up=2).count == 3
    assert grew(client, "echo", before, success=5)


def test_its_clients_are_all_on_their_way_at_once():
    together = threading.Barrier(8)
    found = load.closed_loop(lambda: together.wait(10), 8, requests=80, warm_up=16)
    assert found.count == 80


def test_no_more_are_on_their_way_than_its_concurrency():
    places = threading.BoundedSemaphore(3)

    def ask():
        assert places.acquire(blocking=False)
        threading.Event().wait(0.001)
        places.release()

    assert load.closed_loop(ask, 3, requests=300, warm_up=30).count == 300


def test_failures_are_counted_as_the_server_counts_them(client):
    good, bad = sender(client, "strict"), sender(client, "strict", (-1, 2, 3))
    turns = itertools.cycle([good, good, bad])
    before = counted(client, "strict")
    found = load.closed_loop(lambda: next(turns)(), 4, requests=60)
    assert (found.count, found.errors.total()) == (40, 20)
    assert all("ValueError: not positive" in message for message in found.errors)
    assert grew(client, "strict", before, success=40, failure=20)


def test_refusals_are_counted_which_the_server_does_not_count(client):
    wrong = sender(client)
    sent = grpcclient.InferInput("IN", [1, 3], "FP32")
    sent.set_data_from_numpy(np.ones((1, 3), np.float32))
    turns = itertools.cycle([wrong, lambda: client.infer("echo", [sent])])
    before = counted(client, "echo")
    found = load.closed_loop(lambda: next(turns)(), 4, requests=40)
    ((message, times),) = found.errors.items()
    assert (found.count, times) == (20, 20)
    assert re.search(r"unexpected shape for input 'IN'", message)
    assert grew(client, "echo", before, success=20)


def test_errors_of_the_warm_up_leave_no_trace(client):
    good, bad = sender(client, "strict"), sender(client, "strict", (-1, 2, 3))
    turns = itertools.chain([bad] * 5, itertools.repeat(good))
    before = counted(client, "strict")
    found = load.closed_loop(lambda: next(turns)(), 2, requests=10, warm_up=5)
    assert (found.count, found.errors) == (10, Counter())
    assert grew(client, "strict", before, success=10, failure=5)


def test_each_thread_may_have_an_http_client_of_its_own(triton, client):
    mine = threading.local()
    sent = httpclient.InferInput("IN", [3], "FP32")
    sent.set_data_from_numpy(np.ones(3, np.float32))
    opened = []

    def ask():
        if not hasattr(mine, "client"):
            mine.client = httpclient.InferenceServerClient(triton.http)
            opened.append(1)
        mine.client.infer("echo", [sent])

    before = counted(client, "echo")
    found = load.closed_loop(ask, 4, requests=40, warm_up=8)
    assert (found.count, found.errors) == (40, Counter())
    assert grew(client, "echo", before, success=48)
    assert len(opened) == 4  # the warm-up's threads are those that are measured


def test_in_the_background_it_asks_until_the_block_ends(client):
    before = counted(client, "echo")
    with load.background(sender(client), 4) as running:
        assert wait_for(lambda: running.count >= 50)
        assert len(running.latencies) >= 50  # it can be looked at meanwhile
        assert not no_clients_are_left()
    assert no_clients_are_left()
    assert running.errors == Counter()
    assert running.throughput == running.count / running.seconds
    assert grew(client, "echo", before, success=running.count)


def test_a_killed_server_gives_errors_and_no_hang(tmp_path):
    triton = server.start(write_echo(tmp_path), **QUICK)
    with (
        triton,
        grpcclient.InferenceServerClient(triton.grpc) as client,
        load.background(sender(client), 4) as running,
    ):
        assert wait_for(lambda: running.count >= 20)
        process_of(triton).kill()
        assert wait_for(lambda: running.errors.total() >= 20)
        assert load.closed_loop(sender(client), 4, 30).errors.total() == 30
    assert no_clients_are_left()
    assert running.count >= 20


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("warm_up", [0, 100])
def test_what_is_no_answer_of_tritons_is_raised(concurrency, warm_up):
    calls = itertools.count()

    def ask():
        if next(calls) == 10:
            raise ZeroDivisionError("a mistake in ask")
        threading.Event().wait(0.001)

    with pytest.raises(ZeroDivisionError, match="a mistake in ask"):
        load.closed_loop(ask, concurrency, 10**6, warm_up)
    assert no_clients_are_left()
    assert next(calls) < 10**4  # the others do not go on


def test_it_is_raised_at_the_end_of_a_block_too():
    def ask():
        raise ZeroDivisionError("a mistake in ask")

    ended = []
    with (
        pytest.raises(ZeroDivisionError, match="a mistake in ask"),
        load.background(ask, 4),
    ):
        ended.append(wait_for(no_clients_are_left))
    assert ended == [True]


def test_an_error_in_the_block_ends_the_load_and_goes_on():
    with pytest.raises(KeyError), load.background(lambda: None, 4):
        raise KeyError("a mistake in the block")
    assert no_clients_are_left()


def test_nobody_is_too_few_clients():
    with pytest.raises(ValueError, match="concurrency is 0: at least one has to ask"):
        load.closed_loop(lambda: None, 0, 1)


ENDLESS = """
import signal, sys, threading, time
from helpers import load

def ask():
    if not began.is_set():
        began.set()
        print("asking", flush=True)
    time.sleep(0.01)

began = threading.Event()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's job
try:
    load.closed_loop(ask, 4, 10**9, warm_up=int(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted,", threading.active_count(), "thread is left", flush=True)
"""


@pytest.mark.parametrize("warm_up", [0, 10**9])
def test_ctrl_c_ends_it(warm_up):
    process = python(ENDLESS, warm_up, cwd=Path(__file__).parent.parent)
    try:
        assert process.stdout.readline() == "asking\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "interrupted, 1 thread is left\n"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("q", "ms"), [(0, 1), (1, 1), (50, 50), (51, 51), (99, 99), (99.5, 100), (100, 100)]
)
def test_a_percentile_is_the_latency_that_so_many_did_not_exceed(q, ms):
    shuffled = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000
    assert load.Load(shuffled).percentile(q) == pytest.approx(ms, rel=1e-12)


def test_a_percentile_is_one_that_was_measured():
    assert load.Load([0.001, 0.004]).percentile(50) == 1
    assert np.isnan(load.Load().percentile(50))


def test_throughput_is_answers_per_second():
    found = load.Load([0.5] * 30, seconds=4)
    assert found.throughput == 7.5
    assert repr(found) == "Load(30 answers, 0 errors, 4.00 s, 7.5/s)"
    assert load.Load().throughput == 0


def test_latencies_and_seconds_are_those_of_the_clock():
    began = time.perf_counter()
    found = load.closed_loop(lambda: threading.Event().wait(0.05), 2, 6, warm_up=20)
    whole = time.perf_counter() - began
    assert (found.latencies >= 0.05).all()
    assert found.latencies.max() <= found.seconds
    # The three measured rounds are in it; the warm-up, ten rounds of it, is not.
    assert 3 * 0.05 <= found.seconds <= whole - 10 * 0.05
