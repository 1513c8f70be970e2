"""perf_analyzer runs here, asks a live server, and is never anything but NVIDIA's."""

import hashlib
import os
import subprocess
import sys
import zipfile

import pytest
import tritonclient.grpc as grpcclient
from conftest import QUICK, wait_for

from helpers import perf_analyzer, server

QUICKLY = "--measurement-mode count_windows --measurement-request-count 20 -s 999"


@pytest.fixture(scope="module")
def triton(echo_repository):
    with server.start(echo_repository, **QUICK) as started:
        yield started


def words(triton, *more, model="echo"):
    shape = "--shape IN:3" if model == "echo" else ""
    return " ".join((f"-m {model} -i grpc -u {triton.grpc}", shape, QUICKLY, *more))


def test_it_asks_the_server_and_returns_a_row_per_concurrency(triton, capsys):
    command = words(triton, "--concurrency-range 1:2")
    rows = perf_analyzer.run(command)
    assert [row["Concurrency"] for row in rows] == [1, 2]
    assert all(row["Inferences/Second"] > 0 for row in rows)
    assert all(row["p50 latency"] <= row["p99 latency"] for row in rows)
    assert capsys.readouterr().out == f"$ perf_analyzer {command}\n"
    with grpcclient.InferenceServerClient(triton.grpc) as client:
        # Three windows for each row, each of at least twenty requests.
        assert wait_for(
            lambda: (
                client.get_inference_statistics("echo").model_stats[0].inference_count
                >= 2 * 3 * 20
            )
        )


def test_what_it_complains_of_is_one_sentence(triton):
    with pytest.raises(perf_analyzer.PerfAnalyzerError) as caught:
        perf_analyzer.run(words(triton, model="nobody"))
    assert "perf_analyzer failed" in str(caught.value)
    assert "nobody" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_look_finds_what_is_there_and_mends_its_links(monkeypatch):
    monkeypatch.setattr(perf_analyzer, "fetch", pytest.fail)
    program = perf_analyzer.find()
    (perf_analyzer.FOLDER / "libb64.so.0d").unlink()
    assert perf_analyzer.find() == program
    answer = subprocess.run(
        [sys.executable, "-m", "helpers.perf_analyzer"], capture_output=True, text=True
    )
    assert answer.stdout == f"perf_analyzer is ready: {program}\n"


def test_the_readers_own_on_the_path_comes_first(tmp_path, monkeypatch):
    own = tmp_path / "perf_analyzer"
    own.write_text("#!/bin/sh\necho out of coffee >&2; exit 3\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(perf_analyzer.PerfAnalyzerError, match="out of coffee"):
        perf_analyzer.run("-m echo")


@pytest.fixture
def no_program(tmp_path, monkeypatch):
    """Nothing is there yet, and the only index is a folder, which is returned."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setattr(perf_analyzer, "FOLDER", tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def write_wheel(index):
    """Write a wheel of the right name with a program of our own; return its SHA-256."""
    file = index / "tritonclient-2.44.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        program = "tritonclient-2.44.0.data/data/bin/perf_analyzer"
        wheel.writestr(program, "#!/bin/sh\necho an impostor\n")
        about = "Metadata-Version: 2.1\nName: tritonclient\nVersion: 2.44.0\n"
        wheel.writestr("tritonclient-2.44.0.dist-info/METADATA", about)
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("tritonclient-2.44.0.dist-info/WHEEL", kind)
        wheel.writestr("tritonclient-2.44.0.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_it_is_taken_out_of_the_wheel_whose_hash_is_ours(no_program, monkeypatch):
    pin = f"tritonclient==2.44.0 --hash=sha256:{write_wheel(no_program)}"
    monkeypatch.setattr(perf_analyzer, "WHEEL", pin)
    program = perf_analyzer.find()
    assert os.access(program, os.X_OK)
    assert "impostor" in program.read_text()
    links = sorted(perf_analyzer.LIBRARIES)
    assert sorted(path.name for path in program.parent.iterdir()) == [
        *links,
        program.name,
    ]
    assert all((program.parent / link).exists() for link in links)


def test_a_wheel_with_another_hash_is_refused(no_program):
    write_wheel(no_program)
    with pytest.raises(perf_analyzer.PerfAnalyzerError, match="DO NOT MATCH"):
        perf_analyzer.find()
    assert not list(perf_analyzer.FOLDER.iterdir())


def test_without_a_network_a_sentence_says_what_to_do(no_program):
    with pytest.raises(perf_analyzer.PerfAnalyzerError) as caught:
        perf_analyzer.run("-m echo")
    assert "There is no perf_analyzer here" in str(caught.value)
    assert "python -m helpers.perf_analyzer" in str(caught.value)
    assert "\n" not in str(caught.value)
