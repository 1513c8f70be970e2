"""`helpers.curl` says what the command of that name says, to a live server."""

import json

import pytest
from conftest import QUICK

from helpers import server
from helpers.curl import curl


@pytest.fixture(scope="module")
def triton(echo_repository):
    with server.start(echo_repository, **QUICK) as triton:
        yield triton


def test_it_shows_the_command_and_returns_the_body(triton, capsys):
    metadata = json.loads(curl(f"http://{triton.http}/v2"))
    assert metadata["name"] == "triton"
    assert capsys.readouterr().out == f"$ curl http://{triton.http}/v2\n"


def test_with_v_it_shows_what_is_sent_and_what_comes_back(triton, capsys):
    body = curl(f"-v http://{triton.http}/v2/health/ready")
    lines = capsys.readouterr().out.splitlines()
    assert body == ""
    assert lines[1] == "> GET /v2/health/ready HTTP/1.1"
    assert f"> Host: {triton.http}" in lines
    assert "< HTTP/1.1 200 OK" in lines


def test_it_posts_data_and_headers(triton, capsys):
    tensor = {"name": "IN", "shape": [2], "datatype": "FP32", "data": [1, 2]}
    request = json.dumps({"inputs": [tensor]})
    answer = curl(
        f"-v -H 'X-Test: yes' -d '{request}' http://{triton.http}/v2/models/echo/infer"
    )
    assert json.loads(answer)["outputs"][0]["data"] == [1, 2]
    assert "> X-Test: yes" in capsys.readouterr().out


def test_it_uses_the_method_that_it_is_told(triton):
    index = curl(f"-X POST http://{triton.http}/v2/repository/index")
    assert json.loads(index)[0]["name"] == "echo"


def test_it_says_why_it_has_no_answer(capsys):
    assert curl("http://127.0.0.1:1/v2") == ""
    assert "curl: (7) Failed to connect to 127.0.0.1" in capsys.readouterr().out
