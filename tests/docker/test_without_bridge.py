"""TRITON=docker where Docker has no bridge network and so can publish no port."""

import engine as real
import pytest
from conftest import echo, squatter
from test_docker import FAST, asked_for_docker, refusal  # noqa: F401

from helpers import docker, embedded, server

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", autouse=True)
def running_engine():
    with real.engine("--bridge=none"):
        yield


def test_it_uses_the_machines_network_and_says_so(echo_repository):
    with server.start(echo_repository, **FAST) as triton:
        assert echo(triton) == [0, 1, 2]
        typed = triton.command
        assert "--net=host" in typed
        assert "-p127" not in typed
        for protocol in embedded.PROTOCOLS:
            address = getattr(triton, protocol)
            assert f"--{protocol}-port={address.partition(':')[2]}" in typed
            assert f"--{protocol}-address=127.0.0.1" in typed


def test_another_servers_answer_is_not_taken_for_its_own(echo_repository, monkeypatch):
    with server.start(echo_repository, **FAST) as theirs:
        port = int(theirs.http.partition(":")[2])
        monkeypatch.setattr(docker, "records", list)  # who took it meanwhile?
        monkeypatch.setattr(embedded, "is_free", lambda _: True)
        assert "somebody else took 127.0.0.1" in refusal(
            echo_repository, http_port=port, **FAST
        )


def test_a_lost_port_is_replaced(echo_repository, monkeypatch):
    with squatter(embedded.choose_ports({}, set())["grpc"]) as taken:
        seeing = embedded.is_free
        monkeypatch.setattr(embedded, "is_free", lambda p: p == taken or seeing(p))
        with server.start(echo_repository, **FAST) as triton:
            assert echo(triton) == [0, 1, 2]
