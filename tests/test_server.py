"""`helpers.server` against live servers: what it promises, and what it refuses."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from conftest import QUICK, echo, process_of, squatter, write_echo

from helpers import bootstrap, embedded, server
from helpers.repository import REPOSITORY

# --- What it promises --------------------------------------------------------------


@pytest.fixture(scope="module")
def triton(echo_repository):
    with server.start(echo_repository, **QUICK) as triton:
        yield triton


def test_a_started_server_answers_on_all_three_ports(triton):
    assert echo(triton) == [0, 1, 2]
    with grpcclient.InferenceServerClient(triton.grpc) as client:
        assert client.is_server_ready()
    with urllib.request.urlopen(f"http://{triton.metrics}/metrics") as page:
        assert b"nv_inference_request_success" in page.read()


def test_it_listens_on_the_loopback_address_alone(triton):
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in process_of(triton).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}


def test_the_command_is_what_runs(triton):
    running = process_of(triton).cmdline()[1:]
    program, *typed = triton.command.replace(" \\\n  ", " ").split(" ")
    assert program == "tritonserver"
    assert [Path(word).name for word in typed] == [Path(word).name for word in running]


def test_it_writes_nothing_into_the_readers_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with server.start(
        REPOSITORY, id="homely", disable_auto_complete_config=True
    ) as ours:
        client = httpclient.InferenceServerClient(ours.http)
        inputs = [httpclient.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
        for tensor in inputs:
            tensor.set_data_from_numpy(np.ones((1, 16), np.int32))
        assert client.infer("simple", inputs).as_numpy("OUTPUT0").sum() == 32
        client.close()
    assert list(tmp_path.rglob("*")) == []


def test_the_log_is_read_from_its_end(triton):
    assert "Started Metrics Service" in triton.log()
    assert len(triton.log(3).splitlines()) == 3


def test_a_record_is_never_half_written(triton):
    record = json.loads((triton._process.folder / "server.json").read_text())
    assert record["process"][0] == process_of(triton).pid
    assert not list(triton._process.folder.glob("*.part"))


@pytest.mark.alone
def test_it_takes_three_other_ports_and_says_so_where_one_is_taken(
    echo_repository, capsys
):
    with (
        squatter(embedded.choose_ports({}, set())["grpc"]) as taken,
        server.start(echo_repository, id="another", **QUICK) as triton,
    ):
        assert echo(triton) == [0, 1, 2]
        printed = capsys.readouterr().out
        assert triton.http in printed
        assert "(8000 to 8002 are not all free)" in printed
        assert taken != int(triton.grpc.split(":")[1])


def test_any_flag_is_passed_by_its_own_name(echo_repository):
    flags = {
        "model_control_mode": "explicit",
        "log_verbose": 1,
        "strict_readiness": False,
        "metrics_config": ["summary_latencies=true", "counter_latencies=false"],
    }
    with server.start(echo_repository, **flags) as triton:
        for flag in (
            "--model-control-mode=explicit",
            "--log-verbose=1",
            "--strict-readiness=false",
            "--metrics-config=summary_latencies=true",
            "--metrics-config=counter_latencies=false",
        ):
            assert flag in triton.command.split(" \\\n  ")
        with httpclient.InferenceServerClient(triton.http) as client:
            assert client.get_log_settings()["log_verbose_level"] == 1
            assert client.get_model_repository_index() == [{"name": "echo"}]


def test_several_repositories_can_be_served_at_once(tmp_path, echo_repository):
    second = write_echo(tmp_path / "second", "echo2")
    with server.start([echo_repository, second], **QUICK) as triton:
        client = httpclient.InferenceServerClient(triton.http)
        assert client.is_model_ready("echo")
        assert client.is_model_ready("echo2")
        client.close()


def test_after_a_stop_the_log_stays_and_a_second_stop_is_fine(echo_repository):
    triton = server.start(echo_repository, **QUICK)
    triton.stop()
    triton.stop()
    assert "Started Metrics Service" in triton.log()
    assert not psutil.pid_exists(triton._process.process[0])


# --- From a shell ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model-repository=/nowhere"], "There is no model repository at '/nowhere'"),
        (["--model-repository=.", "loud"], "'loud' is not a flag"),
        ([], "Say `python -m helpers.server --model-repository=PATH"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments, sentence):
    command = [sys.executable, "-m", "helpers.server", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode != 0
    assert answer.stderr.startswith(sentence)
    assert "Traceback" not in answer.stderr


def test_the_command_shows_tritonservers_own_help():
    command = [sys.executable, "-m", "helpers.server", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert "--model-control-mode" in answer.stdout + answer.stderr


# --- What it refuses ---------------------------------------------------------------


def refusal(*arguments: object, **flags: object) -> str:
    with pytest.raises(server.StartError) as caught:
        server.start(*arguments, **flags)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert caught.value._render_traceback_() == [
        f"{type(caught.value).__name__}: {sentence}"
    ]
    return sentence


def test_a_missing_repository_is_refused(tmp_path):
    sentence = refusal(tmp_path / "nowhere")
    assert sentence.startswith(f"There is no model repository at '{tmp_path}/nowhere'")


def test_an_empty_repository_is_refused(tmp_path):
    assert "is empty: put a model's folder into it" in refusal(tmp_path)


def test_a_path_with_a_space_is_refused(tmp_path):
    repository = write_echo(tmp_path / "my models")
    assert f"the space in '{repository}'" in refusal(repository)


def test_a_model_that_fails_to_load_is_refused_in_its_own_words(tmp_path):
    repository = write_echo(tmp_path)
    (repository / "echo" / "1" / "model.py").write_text("import nothing_here")
    sentence = refusal(repository)
    assert "failed to load 'echo' version 1" in sentence
    assert "No module named 'nothing_here'" in sentence
    assert "exit_on_error=False" in sentence


def test_a_model_without_a_version_is_refused(tmp_path):
    repository = write_echo(tmp_path)
    (repository / "echo" / "1").rename(repository / "echo" / "first")
    assert "at least one version must be available" in refusal(repository)


def test_a_config_with_a_mistake_is_refused_with_its_line(tmp_path):
    repository = write_echo(tmp_path)
    (repository / "echo" / "config.pbtxt").write_text("max_batch_size: many")
    assert "line 1:17: Expected integer, got: many" in refusal(repository)


def test_a_port_asked_for_by_name_that_is_taken_is_refused(echo_repository):
    with squatter() as port:
        sentence = refusal(echo_repository, grpc_port=port)
    assert sentence.startswith(f"The port {port} that you ask for with --grpc-port")


def test_a_port_that_is_lost_at_the_last_moment_is_replaced(
    echo_repository, monkeypatch
):
    with squatter(embedded.choose_ports({}, set())["http"]):
        blind = iter([True, True, True])
        seeing = embedded.is_free
        monkeypatch.setattr(
            embedded, "is_free", lambda p: next(blind, None) or seeing(p)
        )
        with server.start(echo_repository, **QUICK) as triton:
            assert echo(triton) == [0, 1, 2]


def test_an_unknown_flag_is_refused(echo_repository):
    assert refusal(echo_repository, no_such_flag=1).startswith(
        "Triton has no flag --no-such-flag"
    )


@pytest.mark.parametrize("pause", [0, 0.5], ids=["", "over before it was looked at"])
def test_a_bad_value_of_a_flag_is_refused(echo_repository, monkeypatch, pause):
    def look_late(*arguments, **options):
        time.sleep(pause)
        return identity(*arguments, **options)

    identity = embedded.identity
    monkeypatch.setattr(embedded, "identity", look_late)
    sentence = refusal(echo_repository, model_control_mode="sometimes")
    assert "invalid argument for --model-control-mode" in sentence


def test_a_missing_certificate_is_not_taken_for_a_taken_port(echo_repository):
    flags = {"grpc_use_ssl": True, "grpc_server_cert": "/no/such.crt"}
    sentence = refusal(echo_repository, **flags, grpc_server_key="/no/such.key")
    assert "can't use what it was given for TLS: Invalid cert chain file." in sentence
    assert "--grpc-server-cert and --grpc-server-key" in sentence


def test_a_missing_libpython_is_refused_not_waited_for(
    echo_repository, monkeypatch, tmp_path
):
    # A library with the right name and nothing in it stands before the real one.
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    (tmp_path / name).touch()
    monkeypatch.setattr(embedded.sysconfig, "get_config_var", lambda _: str(tmp_path))
    sentence = refusal(echo_repository)
    assert sentence.startswith("Triton's Python backend can't start because")
    assert "apt install libpython3." in sentence


def test_a_server_that_ends_without_an_error_was_ended_by_something():
    log = 'I1122 19:01:59.439697 22104 server.cc:305] "Waiting for requests."\n'
    no_gpu = 'E1122 19:01:59.5 22104 server.cc:241] "CudaDriverHelper has not been'
    row = "| server_id | triton |\n"
    table = f"{log}+-----------+--------+\n{row}+-----------+--------+\n"
    for said in (log, "", f'{log}{no_gpu} initialized."\n', table, f"{log}{row}"):
        sentence = str(embedded.failure(said))
        assert "was ended while it started" in sentence
        assert "want of memory: start it again" in sentence


def test_a_servers_stub_is_a_copy_that_anybody_may_run(tmp_path):
    stub = embedded.make_backends(tmp_path) / "python" / "triton_python_backend_stub"
    assert not stub.is_symlink()
    assert stub.stat().st_nlink == 1
    assert stub.stat().st_mode & 0o555 == 0o555


def test_a_server_that_takes_too_long_is_ended_and_says_what_it_waits_for():
    sentence = str(
        embedded.too_slow('I1122 19:01:59.4 22104 x.cc:1] "loading: slow:1"')
    )
    assert "was ended; its log's last word is: loading: slow:1. See what" in sentence


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        (("Darwin", "arm64", ("", "")), "not for Darwin on arm64"),
        (("Windows", "AMD64", ("", "")), "not for Windows on AMD64"),
        (("Linux", "riscv64", ("glibc", "2.40")), "not for Linux on riscv64"),
        (("Linux", "x86_64", ("glibc", "2.31")), "this system has glibc 2.31"),
        (("Linux", "x86_64", ("", "")), "this system has none"),
    ],
)
def test_an_unsupported_platform_is_told_what_to_use_instead(machine, sentence):
    problem = bootstrap.platform_problem(*machine)
    assert sentence in problem
    assert "Docker, Binder or a Linux machine" in problem


def test_a_supported_platform_is_not_refused():
    assert bootstrap.platform_problem("Linux", "aarch64", ("glibc", "2.35")) is None


def connect_refusal() -> str:
    with pytest.raises(server.StartError) as caught:
        server.connect()
    return str(caught.value)


def test_a_silent_address_is_refused(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("TRITON", address)
        assert connect_refusal().startswith(f"No Triton answers at {address}")


def test_an_address_that_is_no_triton_is_refused(monkeypatch, echo_repository):
    with server.start(echo_repository, **QUICK) as triton:
        monkeypatch.setenv("TRITON", f"http://{triton.metrics}")
        assert "is not Triton's HTTP endpoint" in connect_refusal()


@pytest.mark.parametrize("value", ["localhost", "http://host:port", "h:1,2", "h:,,"])
def test_an_address_that_makes_no_sense_is_refused(monkeypatch, value):
    monkeypatch.setenv("TRITON", value)
    assert connect_refusal().startswith(f"TRITON={value} is not understood")


# --- A server that somebody else runs ----------------------------------------------


def test_connect_attaches_to_the_server_that_triton_names(monkeypatch, echo_repository):
    with server.start(echo_repository, **QUICK) as theirs:
        ports = [a.split(":")[1] for a in (theirs.http, theirs.grpc, theirs.metrics)]
        monkeypatch.setenv("TRITON", f"127.0.0.1:{','.join(ports)}")
        found = server.connect()
        assert (found.http, found.grpc) == (theirs.http, theirs.grpc)
        found.stop()
        assert echo(found) == [0, 1, 2]  # what we did not start, we do not end
        assert "somebody else" in refusal(echo_repository)
        monkeypatch.delenv("TRITON")


def test_what_a_server_elsewhere_lacks_is_told(monkeypatch, echo_repository, capsys):
    with (
        server.start(echo_repository, allow_metrics=False, **QUICK) as theirs,
        socket.socket() as unused,
    ):
        unused.bind(("127.0.0.1", 0))
        http, silent = theirs.http.partition(":")[2], unused.getsockname()[1]
        capsys.readouterr()
        monkeypatch.setenv("TRITON", f"127.0.0.1:{http},{silent},{silent}")
        server.connect()
        command, addresses, *lacking = capsys.readouterr().out.splitlines()
        assert command.startswith(f"TRITON=127.0.0.1:{http}  # started by somebody")
        assert addresses.startswith(f"HTTP 127.0.0.1:{http}, gRPC 127.0.0.1:{silent}")
        assert [sentence.partition(":")[0] for sentence in lacking] == [
            "It does not serve the model simple",
            "It does not serve the model efficientnet_lite0",
            "No metrics at 127.0.0.1",
            "No gRPC at 127.0.0.1",
        ]
        monkeypatch.delenv("TRITON")


def test_a_server_elsewhere_that_has_all_is_announced_in_two_lines(monkeypatch, capsys):
    theirs = server.connect()
    ports = [a.split(":")[1] for a in (theirs.http, theirs.grpc, theirs.metrics)]
    capsys.readouterr()
    monkeypatch.setenv("TRITON", f"127.0.0.1:{','.join(ports)}")
    server.connect()
    assert len(capsys.readouterr().out.splitlines()) == 2
