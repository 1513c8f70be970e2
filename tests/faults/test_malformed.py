"""Malformed requests by the thousand: each refused, and the server none the worse."""

import collections
import copy
import json
import os
import re

import grpc
import hypothesis
import malformed
import psutil
import pytest
from conftest import process_of, sized
from kernel import check_sums
from malformed import GOOD, INFER, answered, asked_for, call, is_right, message, send

from helpers import embedded, server
from helpers.repository import REPOSITORY

GROWTH = 50 << 20  # bytes that the server's processes may have more after all that
# Triton 2.51 blames itself for what its client sent; docs/troubleshooting.md.
BLAMES_ITSELF = (
    rb"[Uu]nable to parse|failed to parse the request JSON|failed to get request params"
    rb"|Unsupported compression type|model load / unload is not allowed"
    rb"|parameter key '[^']*' was not found"  # one with a NUL, where it ends
)


def memory(triton: server.Triton) -> int:
    """Return the bytes that a server's processes have for themselves."""
    processes = embedded.processes_of(triton._process)
    return sum(process.memory_full_info().uss for process in processes)


@pytest.fixture(scope="module")
def triton():
    with server.start(
        REPOSITORY, id="malformed", disable_auto_complete_config=True
    ) as running:
        check_sums(running, seconds=1)
        before = memory(running)
        yield running
        check_sums(running)
        assert memory(running) < before + GROWTH


def drawn(strategy, count: int, check) -> collections.Counter:
    """Check so many drawn requests; return how many had which outcome."""
    outcomes = collections.Counter()

    @hypothesis.seed(int(os.environ["SEED"]))
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(request: bytes) -> None:
        outcomes[check(request)] += 1

    run()
    print(dict(outcomes))
    return outcomes


@sized(short=100, long=3500)
def test_no_malformed_http_request_does_harm(triton, count):
    def check(request: bytes) -> str:
        status, body = send(triton, request)
        if status is None:
            assert triton._process.alive()
            return "hung up"
        if status == 200:
            outputs, right = answered(body), asked_for(request)
            assert outputs
            for name, numbers in outputs:
                assert numbers == right[name]
            return "harmless and answered right"
        if status < 500:
            return "4xx"
        assert re.search(BLAMES_ITSELF, body), body
        return "5xx that blames the request in words"

    outcomes = drawn(malformed.spoilt_http(), count, check)
    assert outcomes["harmless and answered right"] < 0.3 * outcomes.total()


@sized(short=60, long=1500)
def test_no_malformed_grpc_request_does_harm(triton, count):
    def check(request: bytes) -> str:
        code, text = call(channel, request)
        if code == grpc.StatusCode.OK:
            assert is_right(request, text)
            return "harmless and answered right"
        if code == grpc.StatusCode.INTERNAL:
            assert text == b"Unable to parse request"
        else:
            refusals = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")
            assert code.name in refusals, (code, text)
        return code.name

    with grpc.insecure_channel(triton.grpc) as channel:
        outcomes = drawn(malformed.spoilt_grpc(), count, check)
    assert outcomes["harmless and answered right"] < 0.3 * outcomes.total()


# --- What Triton 2.51 gets wrong, and is kept out of the above ----------------------


def wrong(reason: str) -> pytest.MarkDecorator:
    """Mark a test that begins to pass when Triton mends this."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)


def with_input(**fields: object) -> bytes:
    """Return the good request with some fields of its first tensor changed."""
    request = copy.deepcopy(GOOD)
    request["inputs"][0] |= fields
    return message(INFER, {}, json.dumps(request).encode())


@pytest.mark.faults
@wrong("Triton 2.51 wraps a number that is too large")
def test_a_number_larger_than_its_type_is_refused(triton):
    status, _ = send(triton, with_input(data=[2**31, *range(15)]))
    assert status != 200


@pytest.fixture
def victim():
    """A server that may crash."""
    with server.start(
        REPOSITORY, id="victim", disable_auto_complete_config=True
    ) as running:
        yield running


@pytest.mark.faults
@wrong("Triton 2.51 ends when a shape's bytes overflow")
@pytest.mark.parametrize("shape", [[2**62], [2**31, 2**31]], ids=str)
def test_a_shape_whose_bytes_overflow_is_refused(victim, shape):
    status, _ = send(victim, with_input(shape=shape))
    assert status is not None


@pytest.mark.faults
@wrong("Triton 2.51 ends at a million chunks")
def test_a_million_chunks_are_refused(victim):
    start = f"{INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _ = send(victim, start.encode() + b"1\r\n{\r\n" * 1_000_000 + b"0\r\n\r\n")
    assert status is not None


@pytest.mark.faults
@wrong("Triton 2.51 makes room for what a shape says")
def test_a_shape_costs_no_memory_before_its_data_is_there(victim):
    send(victim, with_input(shape=[1, 2**26]))  # 256 MB of INT32, and 16 numbers
    peak = re.search(r"VmHWM:\s+(\d+) kB", status_of(process_of(victim)))
    assert int(peak[1]) < 200_000


def status_of(process: psutil.Process) -> str:
    return (embedded.PROC / str(process.pid) / "status").read_text()
