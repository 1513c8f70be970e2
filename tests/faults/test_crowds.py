"""Many kernels at once: one shared server, or one each, and none in another's way."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import python, sized, traces

from helpers import embedded, server

CONNECT = "from helpers import server; print(server.connect()._process.process[0])"
OWN = """
import sys
from helpers import server
from kernel import check_sums
from helpers.repository import REPOSITORY

with server.start(REPOSITORY, disable_auto_complete_config=True) as triton:
    check_sums(triton, seconds=1)
    record = triton._process
    print(record.ports["http"], record.name, record.unpacked)
    sys.stdout.flush()
    sys.stdin.read()
"""


@pytest.mark.usefixtures("no_server")
@sized(short=4, long=20)
def test_kernels_that_connect_at_once_share_one_server(count):
    kernels = [python(CONNECT) for _ in range(count)]
    found = {kernel.communicate(timeout=120)[0].split()[-1] for kernel in kernels}
    assert len(found) == 1
    assert sum(record.alive() for record in embedded.records()) == 1


@sized(short=3, long=10)
def test_kernels_that_start_their_own_at_once_share_nothing(count, tmp_path):
    before = traces()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    options = {"stdin": subprocess.PIPE, "env": environment}
    kernels = [python(OWN, **options) for _ in range(count)]
    try:
        told = [[k.stdout.readline() for _ in range(3)][-1].split() for k in kernels]
        for mine in zip(*told, strict=True):
            assert len(set(mine)) == count
        assert sum(record.alive() for record in embedded.records()) == count
        for kernel in kernels:
            kernel.communicate("", timeout=120)
        assert [kernel.returncode for kernel in kernels] == [0] * count
        assert traces() == before
    finally:
        for kernel in kernels:
            kernel.kill()
        server.stop_all()
