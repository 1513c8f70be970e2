"""TRITON=docker on a real engine: what it promises, and what it refuses.

The engine is brought up for these tests, with an image under NVIDIA's name that has
the wheel's server in it; see engine.py.
"""

import concurrent.futures
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import engine as real
import psutil
import pytest
import registry
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from conftest import QUICK, echo, python, squatter, write_echo

from helpers import docker, embedded, engine, server

pytestmark = pytest.mark.docker
try:
    real.check_machine()
except real.CannotRunError as problem:
    message = f"TRITON=docker is not tested: {problem}"
    pytest.skip(message, allow_module_level=True)


IMAGE = engine.IMAGE
# The server looks at its metrics once more before it ends: the sooner the better.
FAST = {**QUICK, "metrics_interval_ms": 100}
CONNECT = "from helpers import server; print(server.connect()._process.name)"


@pytest.fixture(scope="module", autouse=True)
def running_engine():
    with real.engine():
        yield
    assert not [line for line in mounts() if str(real.CACHE) in line]


def mounts():
    return Path("/proc/mounts").read_text().splitlines()


@pytest.fixture(autouse=True)
def asked_for_docker(monkeypatch):
    """TRITON=docker in the test, and nothing is left after it."""
    monkeypatch.setenv("TRITON", "docker")
    yield
    monkeypatch.undo()
    assert containers() == []
    assert not embedded.state().exists()


@pytest.fixture
def stopped_after():
    yield
    server.stop_all()


def containers():
    return engine.docker("ps", "--all", "--format={{.Names}}").split()


def refusal(*arguments, **flags):
    with pytest.raises(server.StartError) as caught:
        server.start(*arguments, **flags)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# --- The quickstart -----------------------------------------------------------------


def test_the_quickstarts_own_words_bring_up_a_server_that_answers(echo_repository):
    first = max(port for port in embedded.choose_ports({}, set()).values()) - 2
    ports = " ".join(f"-p{first + i}:{8000 + i}" for i in range(3))
    shell = subprocess.Popen(
        f"docker run --rm --name=quickstart {ports} -v{echo_repository}:/models"
        f" {IMAGE} tritonserver --model-repository=/models",
        shell=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("Started Metrics Service" in line for line in shell.stderr)
        quickstart = server.attach(f"127.0.0.1:{first},{first + 1},{first + 2}")
        assert echo(quickstart) == [0, 1, 2]
    finally:
        engine.docker("rm", "--force", "quickstart")
        shell.communicate()


def test_an_ordinary_user_without_privileges_can_serve(tmp_path):
    # The flags that lesson 16 ends with; pytest's own folders are for root alone.
    models = write_echo(tmp_path / "models")
    flags = "--user=1000:1000 --cap-drop=ALL --security-opt=no-new-privileges"
    flags += f" --read-only --tmpfs=/tmp -v{models}:/models:ro --shm-size=1g"
    ports = embedded.choose_ports({}, set()).values()
    flags += "".join(
        f" -p127.0.0.1:{outside}:{inside}"
        for inside, outside in enumerate(ports, start=8000)
    )
    words = ["run", "--detach", "--rm", "--name=ordinary", *flags.split(), IMAGE]
    engine.docker(*words, "tritonserver", "--model-repository=/models")
    try:
        deadline = time.monotonic() + 60
        while "Metrics Service" not in logs("ordinary") and time.monotonic() < deadline:
            time.sleep(0.2)
        ordinary = server.attach("127.0.0.1:" + ",".join(map(str, ports)))
        assert echo(ordinary) == [0, 1, 2]
        assert engine.docker("exec", "ordinary", "id", "-u").strip() == "1000"
        for place in ("/models", "/"):
            write = ["exec", "ordinary", "touch", f"{place}/file"]
            with pytest.raises(server.StartError, match="Read-only file system"):
                engine.docker(*write)
    finally:
        engine.docker("rm", "--force", "ordinary")


def logs(name):
    answer = subprocess.run(["docker", "logs", name], capture_output=True, text=True)
    return answer.stdout + answer.stderr


# --- What it promises ---------------------------------------------------------------


def test_it_answers_on_three_ports_of_this_machine_alone(echo_repository):
    with server.start(echo_repository, **FAST) as triton:
        assert echo(triton) == [0, 1, 2]
        with grpcclient.InferenceServerClient(triton.grpc) as client:
            assert client.is_server_ready()
        with urllib.request.urlopen(f"http://{triton.metrics}/metrics") as page:
            assert b"nv_inference_request_success" in page.read()
        for port in triton._process.ports.values():
            assert not embedded.is_free(port)
            with socket.socket() as elsewhere:
                elsewhere.bind(("127.0.0.2", port))  # so it is not taken everywhere


def test_the_command_typed_into_a_shell_is_what_ran(echo_repository, monkeypatch):
    monkeypatch.chdir(echo_repository.parent)
    with server.start(echo_repository, log_verbose=1, **FAST) as triton:
        typed = triton.command
        asked = ["inspect", "--format={{json .}}", triton._process.name]
        ran = engine.json.loads(engine.docker(*asked))
    printed = subprocess.run(
        f"docker() {{ printf '%s\\n' \"$@\"; }}\n{typed}",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PWD": str(Path.cwd())},
    ).stdout.splitlines()
    assert printed == triton._process.words()[1:]
    assert "$PWD/" in typed
    assert "-p127.0.0.1:" in typed
    assert ran["Config"]["Cmd"] == printed[printed.index("tritonserver") :]
    assert ran["HostConfig"]["Binds"] == [f"{echo_repository}:/models:ro"]
    assert ran["HostConfig"]["ShmSize"] == 1 << 30
    assert ran["HostConfig"]["AutoRemove"]
    lines = [line.rstrip(" \\") for line in typed.splitlines()]
    assert lines[0] == "docker run"
    assert f"  {IMAGE} tritonserver" in lines
    assert all(len(shlex.split(line)) == 1 for line in lines if "--" in line)


def test_the_log_is_there_while_it_runs_and_after_two_stops(echo_repository):
    triton = server.start(echo_repository, **FAST)
    assert "Started Metrics Service" in triton.log()
    assert len(triton.log(3).splitlines()) == 3
    triton.stop()
    triton.stop()
    assert "Started Metrics Service" in triton.log(100)
    assert "successfully unloaded 'echo'" in triton.log()


def test_the_log_outlives_a_container_that_is_killed(echo_repository):
    triton = server.start(echo_repository, **FAST)
    (reader,) = [p for p in psutil.Process().children() if "logs" in p.cmdline()]
    assert os.getsid(reader.pid) != os.getsid(0)  # Ctrl-C is for the kernel alone
    engine.docker("kill", triton._process.name)
    triton._process.follower.join(5)
    assert not triton._process.alive()
    assert "Started Metrics Service" in triton.log()
    triton.stop()


def test_several_repositories_and_a_path_with_a_space(tmp_path, echo_repository):
    second = write_echo(tmp_path / "my models", "echo2")
    with server.start([echo_repository, second], **FAST) as triton:
        with httpclient.InferenceServerClient(triton.http) as client:
            assert client.is_model_ready("echo")
            assert client.is_model_ready("echo2")
        assert "--model-repository=/models2" in triton.command


def test_a_file_that_a_flag_names_is_there_in_the_container(tmp_path, echo_repository):
    certificate = tmp_path / "ca.pem"
    certificate.write_text("no certificate")
    with server.start(echo_repository, grpc_root_cert=certificate, **FAST) as triton:
        mounted = engine.docker("exec", triton._process.name, "cat", str(certificate))
        assert mounted == "no certificate"


def test_ports_asked_for_by_name_are_the_same_inside_and_outside(echo_repository):
    ports = embedded.choose_ports({}, set())
    flags = {f"{protocol}_port": port + 3 for protocol, port in ports.items()}
    with server.start(echo_repository, **flags, **FAST) as triton:
        assert triton.http == f"127.0.0.1:{ports['http'] + 3}"
        assert echo(triton) == [0, 1, 2]


def test_a_server_that_says_nothing_is_seen_to_listen(echo_repository):
    with server.start(echo_repository, log_info=False, **FAST) as triton:
        assert echo(triton) == [0, 1, 2]


def test_a_port_that_is_lost_at_the_last_moment_is_replaced(
    echo_repository, monkeypatch
):
    with squatter(embedded.choose_ports({}, set())["http"]) as taken:
        seeing = embedded.is_free
        monkeypatch.setattr(embedded, "is_free", lambda p: p == taken or seeing(p))
        with server.start(echo_repository, **FAST) as triton:
            assert echo(triton) == [0, 1, 2]


# --- Shared, found, replaced, ended -------------------------------------------------


def test_kernels_that_connect_at_once_share_one_container(stopped_after):
    kernels = [python(CONNECT) for _ in range(3)]
    found = {kernel.communicate()[0].split()[-1] for kernel in kernels}
    assert list(found) == containers()
    triton = server.connect()
    assert [triton._process.name] == containers()
    assert "Started Metrics Service" in triton.log(100)
    asked = ["inspect", "--format={{json .Config.Cmd}}", triton._process.name]
    ran = engine.json.loads(engine.docker(*asked))
    assert ran == triton._process.words()[-len(ran) :]


def test_connect_leaves_a_container_of_another_image_alone(monkeypatch, stopped_after):
    first = server.connect()
    engine.docker("tag", IMAGE, "tritonserver:mine")
    monkeypatch.setenv("TRITON_IMAGE", "tritonserver:mine")
    second = server.connect()
    assert first._process.name != second._process.name
    assert "tritonserver:mine tritonserver" in second.command


def test_a_start_replaces_the_earlier_one_of_this_kernel_or_of_a_dead_one(
    echo_repository,
):
    code = """
import sys
from helpers import server
flags = {"disable_auto_complete_config": True, "metrics_interval_ms": 100}
server.start(sys.argv[1], **flags)
"""
    assert python(code, echo_repository).wait(60) == 0
    (left,) = containers()
    first = server.start(echo_repository, **FAST)
    assert left not in containers()
    with server.start(echo_repository, **FAST) as again:
        assert containers() == [again._process.name]
        assert not first._process.alive()
        assert echo(again) == [0, 1, 2]


def test_a_start_leaves_the_containers_of_live_kernels_alone(echo_repository):
    code = """
import sys
from helpers import server
flags = {"disable_auto_complete_config": True, "metrics_interval_ms": 100}
with server.start(sys.argv[1], **flags):
    print(flush=True)
    sys.stdin.read()
"""
    kernel = python(code, echo_repository, stdin=subprocess.PIPE)
    for _ in range(3):
        kernel.stdout.readline()
    with server.start(echo_repository, **FAST) as mine:
        assert len(containers()) == 2
        assert echo(mine) == [0, 1, 2]
    kernel.communicate("")


def test_the_shell_lists_and_stops_servers_of_both_kinds(echo_repository, monkeypatch):
    contained = server.start(echo_repository, **FAST)
    monkeypatch.delenv("TRITON")
    plain = server.start(echo_repository, **FAST)
    command = [sys.executable, "-m", "helpers.server"]
    listed = subprocess.check_output([*command, "list"], text=True)
    assert contained.http in listed
    assert plain.http in listed
    assert subprocess.check_output([*command, "stop"], text=True) == "2 ended\n"


def test_the_foreground_command_ends_its_container_with_it(echo_repository):
    command = [sys.executable, "-m", "helpers.server", "--metrics-interval-ms=100"]
    shell = subprocess.Popen(
        [*command, f"--model-repository={echo_repository}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout.readline().startswith("$ docker run --rm -d")
    assert shell.stdout.readline().count("127.0.0.1:") == 3
    assert any("Started Metrics Service" in line for line in shell.stderr)
    shell.terminate()
    shell.communicate()
    assert shell.returncode == 0


def test_servers_started_at_once_get_ports_of_their_own(echo_repository):
    def live(number):
        with server.start(echo_repository, id=f"number-{number}", **FAST) as triton:
            return triton.http, echo(triton)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(live, range(4)))
    assert [answer for _, answer in answers] == [[0, 1, 2]] * 4
    assert len({http for http, _ in answers}) == 4


def test_an_interrupted_start_leaves_nothing(echo_repository, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(docker.Server, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.start(echo_repository, **FAST)


# --- What it refuses ----------------------------------------------------------------


def test_no_docker_command_is_told(echo_repository, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        sentence = refusal(echo_repository)
    assert sentence.startswith("There is no docker command: install Docker")


def test_an_engine_that_does_not_run_is_told(echo_repository, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        assert refusal(echo_repository).startswith("Docker's engine is not running")
        assert docker.records() == []


def test_a_user_who_may_not_use_the_socket_is_told(
    echo_repository, monkeypatch, tmp_path
):
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    (tmp_path / "docker").write_text(
        f'#!/bin/sh\nHOME=/ exec {nobody} {shutil.which("docker")} "$@"\n'
    )
    (tmp_path / "docker").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        sentence = refusal(echo_repository)
    assert sentence.startswith("You may not use Docker: run `sudo usermod -aG docker")


def test_an_absent_image_without_a_network_is_told(
    echo_repository, monkeypatch, capsys
):
    monkeypatch.setenv("TRITON_IMAGE", "registry.invalid/tritonserver:24.03-py3")
    sentence = refusal(echo_repository)
    assert "its registry does not answer: connect to the network" in sentence
    assert "$ docker pull registry.invalid/tritonserver" in capsys.readouterr().out


def test_a_disk_without_room_is_told_before_the_pull(
    echo_repository, monkeypatch, capsys
):
    monkeypatch.setenv("TRITON_IMAGE", f"{engine.NVIDIA}:99.99-py3")
    monkeypatch.setattr(engine, "IMAGE_GB", 10**6)
    assert "takes about 1000000 GB and the disk of" in refusal(echo_repository)
    assert "docker pull" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("secret/tritonserver:here", "run `docker login nvcr.io` with the user $oauth"),
        ("tritonserver:gone", "There is no image"),
        ("tritonserver:here", "There is no tritonserver in"),
    ],
)
def test_what_a_registry_answers_is_told(
    image, sentence, echo_repository, monkeypatch, capsys
):
    with registry.registry() as address:
        monkeypatch.setenv("TRITON_IMAGE", f"{address}/{image}")
        assert sentence in refusal(echo_repository)
        printed = capsys.readouterr().out
        assert f"$ docker pull {address}/{image}  # of unknown size, once" in printed
        assert ("1/1" in printed) == (image == "tritonserver:here")


def test_a_gpu_asked_for_without_the_runtime_is_told(echo_repository, monkeypatch):
    monkeypatch.setenv("TRITON_GPUS", "1")
    sentence = refusal(echo_repository)
    assert sentence.startswith("TRITON_GPUS=1 asks for a GPU and Docker has no NVIDIA")


def test_a_gpu_that_docker_fails_to_give_is_told(echo_repository, monkeypatch):
    monkeypatch.setattr(engine, "gpus", lambda _: "1")
    sentence = refusal(echo_repository)
    assert "could not give the container a GPU (" in sentence
    assert "TRITON_GPUS=0" in sentence


def test_a_taken_port_is_told(echo_repository, monkeypatch):
    with squatter() as port:
        sentence = refusal(echo_repository, http_port=port)
        assert sentence.startswith(f"The port {port} that you ask for with --http-port")
        monkeypatch.setattr(embedded, "is_free", lambda _: True)
        assert "Somebody else took a port" in refusal(echo_repository, http_port=port)


def test_a_container_that_dies_at_once_tells_why(echo_repository, tmp_path):
    assert refusal(echo_repository, no_such_flag=1).startswith(
        "Triton has no flag --no-such-flag"
    )
    broken = write_echo(tmp_path)
    (broken / "echo" / "1" / "model.py").write_text("import nothing_here")
    assert "No module named 'nothing_here'" in refusal(broken, **FAST)


def test_one_that_is_gone_before_its_log_is_followed_tells_why(
    echo_repository, monkeypatch
):
    follow = docker.Server.follow

    def follow_late(container):
        while container.exists():
            pass
        follow(container)

    monkeypatch.setattr(docker.Server, "follow", follow_late)
    assert refusal(echo_repository, no_such_flag=1).startswith(
        "Triton has no flag --no-such-flag"
    )


def test_a_missing_repository_is_told_before_docker_makes_one(tmp_path):
    assert "There is no model repository" in refusal(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
