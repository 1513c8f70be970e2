"""The benchmarks work in a tiny form, and the site's page says what they found."""

import argparse
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import client, course, growth, report, servers, wire
from helpers.repository import REPOSITORY

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "CACHE", tmp_path)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.jsonl")


def options(**given):
    path = servers.tensors()
    return argparse.Namespace(
        tensors=path, seconds=0.4, warm_up=0.1, clients=[1, 2], **given
    )


@pytest.mark.parametrize("name", ["triton-http", "triton-grpc", "triton-shm"])
def test_a_turn_measures_a_server_beside_the_limit(name):
    bench.attempt("round", name, {"instances": 0}, options())
    (record,) = bench.read()
    assert "failure" not in record
    assert record["start_s"] > 0
    assert record["pss_mb"] > 0
    for load in (*record["loads"].values(), *record["limits"].values()):
        assert load["answers"] > 0
        assert (load["wrong"], load["errors"]) == (0, {})
    assert f"| {report.LABELS[name]} |" in report.text(bench.read())


def test_a_server_that_fails_is_shown_and_ends_nothing(monkeypatch, tmp_path):
    def broken(*_):
        return ["python3", "-c", "raise SystemExit('no such model')"]

    peer = servers.Peer("fastapi", broken, [{"THREADS": 1}])
    peer.install = lambda: None
    monkeypatch.setitem(servers.SERVERS, "fastapi", peer)
    given = options()
    bench.attempt("round", "fastapi", {"THREADS": 1}, given)
    bench.attempt("round", "in-process", {}, given)
    failed, measured = bench.read()
    assert failed["failure"] == "it ended: no such model"
    assert bench.score(failed) == 0
    assert measured["loads"]["1"]["answers"] > 0
    assert "FastAPI, by hand: it ended: no such model" in report.text(bench.read())


class Zeros(http.server.BaseHTTPRequestHandler):
    """A server that answers every second request with an error, others with zeros."""

    protocol_version = "HTTP/1.1"
    count = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        Zeros.count += 1
        body = bytes(4000)
        self.send_response(500 if Zeros.count % 2 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_wrong_answers_and_errors_are_counted():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Zeros) as zeros:
        threading.Thread(target=zeros.serve_forever, daemon=True).start()
        job = {"protocol": "http", "dialect": "plain", "port": zeros.server_port}
        job |= {"concurrency": 1, "warm_up": 0.0, "seconds": 0.5}
        found = client.run({**job, "tensors": str(servers.tensors())})
        zeros.shutdown()
    assert found["wrong"] == found["answers"] > 0
    assert sum(found["errors"].values()) > 0


def test_one_thread_can_act_for_many_clients():
    x = np.arange(16, dtype=np.int32)[None]
    asked = wire.Question("simple", ["INPUT0", "INPUT1"], "OUTPUT0")
    job = {"concurrency": 8, "seconds": 0.3, "question": asked, "polled": True}
    with growth.serving(REPOSITORY) as triton:
        assert growth.load(triton, x, 2 * x, **job)["answers"] > 8
        with pytest.raises(RuntimeError, match="wrong answers"):
            growth.load(triton, x, x, **job)


def test_models_that_give_the_same_answer_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "POINTS", tmp_path / "growth.jsonl")
    monkeypatch.setattr(growth, "TURNS", 1)
    growth.batching()
    points = growth.read()
    without, *others = points
    assert (without["x"], without["of the first"]) == ("without", 1)
    assert [point["rate"] / without["rate"] for point in others] == pytest.approx(
        [point["of the first"] for point in others]
    )
    assert len(others) == 3
    assert "| with, in Python that only adds |" in report.grown(points)


def test_the_slowest_tests_are_read_from_pytests_report():
    said = """
    ===== slowest 10 durations =====
    12.34s call     tests/test_a.py::test_x[1-2 3]
    0.50s setup    tests/test_b.py::test_y
    3.00s teardown tests/test_b.py::test_z
    """
    lines = "\n".join(line.strip() for line in said.splitlines())
    assert course.slowest(lines)[0] == (12.34, "tests/test_a.py::test_x[1-2 3]")
    assert len(course.slowest(lines)) == 2


def test_both_protocols_carry_the_same_question():
    tensor = np.arange(16, dtype=np.int32)[None]
    asked = wire.Question("simple", ["INPUT0", "INPUT1"], "OUTPUT0")
    head, _, body = wire.request("v2", 1, tensor, asked).partition(b"\r\n\r\n")
    length = int(re.search(rb"Inference-Header-Content-Length: (\d+)", head)[1])
    described = json.loads(body[:length])
    assert [given["name"] for given in described["inputs"]] == asked.inputs
    assert body[length:] == tensor.tobytes() * 2
    assert wire.message(tensor, asked).count(tensor.tobytes()) == 2


def test_the_best_setting_is_the_one_with_the_highest_rates_under_load():
    def swept(threads, rate):
        load, lone = ({"throughput": r, "errors": {}} for r in (rate, 100 - rate))
        return {
            "kind": "sweep",
            "server": "fastapi",
            "setting": {"THREADS": threads},
            "loads": {"1": lone, "4": load},
            "limits": {"1": {"throughput": 100}, "4": {"throughput": 100}},
        }

    records = [swept(1, 60), swept(2, 90), swept(1, 80)]
    assert bench.best("fastapi", records) == {"THREADS": 2}


@pytest.mark.parametrize(
    ("measured", "under_load"), [(["1", "4", "16"], ["4", "16"]), (["4"], ["4"])]
)
def test_the_load_is_that_of_several_clients_or_all_there_is(measured, under_load):
    assert report.several({"loads": dict.fromkeys(measured)}) == under_load


def test_the_results_say_when_where_and_with_what_they_were_made():
    assert re.search(
        r"^20\d\d-\d\d-\d\d .* UTC; \d+ cores of .+Python 3", RESULTS, re.M
    )
    for name in report.LABELS.values():
        assert name in RESULTS
    answers = re.findall(
        r"^\| .+ \| (\d+) \| (\d+) \| (\d+) \| [^|]* \|$", RESULTS, re.M
    )
    assert answers
    assert all(wrong == "0" for _, wrong, _ in answers)


def test_the_page_takes_its_tables_from_the_results():
    page = PAGE.read_text()
    shown = re.findall(r':start-after: "(.+)"', page)
    assert shown
    assert all(f"{marker}\n" in RESULTS for marker in shown)
    prose = re.sub(r"^:.*$|```.*?```", "", page, flags=re.MULTILINE | re.DOTALL)
    for number in re.findall(r"\d+\.\d+", prose):
        assert number in RESULTS
