"""The life of a server: shared, found, replaced, ended, and what is left of it."""

import concurrent.futures
import functools
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest
import tritonclient.http as httpclient
from conftest import (
    QUICK,
    echo,
    process_of,
    python,
    traces,
    wait_for,
    write_echo,
)

from helpers import embedded, server

pytestmark = pytest.mark.usefixtures("no_server")
CONNECT = "from helpers import server; print(server.connect()._process.process[0])"


@pytest.mark.alone
def test_it_takes_8000_8001_8002_where_they_are_free(echo_repository):
    if not all(embedded.is_free(port) for port in (8000, 8001, 8002)):
        pytest.skip("another program uses the ports 8000 to 8002")
    with server.start(echo_repository, **QUICK) as triton:
        addresses = (triton.http, triton.grpc, triton.metrics)
        assert addresses == tuple(f"127.0.0.1:{port}" for port in (8000, 8001, 8002))


def test_running_the_cell_again_replaces_the_server(echo_repository):
    first = server.start(echo_repository, **QUICK)
    again = server.start(echo_repository, **QUICK)
    assert not embedded.lives(first._process.process)
    assert echo(again) == [0, 1, 2]


def test_a_start_after_a_kernel_restart_replaces_the_server(echo_repository):
    code = """
import sys
from helpers import server
server.start(sys.argv[1], disable_auto_complete_config=True)
"""
    kernel = python(code, echo_repository)
    assert kernel.wait(60) == 0
    (left,) = embedded.records()
    assert left.alive()
    with server.start(echo_repository, **QUICK) as triton:
        assert not left.alive()
        assert echo(triton) == [0, 1, 2]


def test_a_start_leaves_the_servers_of_live_kernels_alone(echo_repository):
    code = """
import sys
from helpers import server
server.start(sys.argv[1], disable_auto_complete_config=True)
sys.stdout.flush()
sys.stdin.read()
"""
    kernel = python(code, echo_repository, stdin=subprocess.PIPE)
    kernel.stdout.readline()
    kernel.stdout.readline()
    (other,) = embedded.records()
    with server.start(echo_repository, **QUICK) as mine:
        assert other.alive()
        assert echo(mine) == [0, 1, 2]
    kernel.communicate("")


def test_starts_at_once_in_different_temporary_folders_lose_no_port(
    echo_repository, tmp_path
):
    code = """
import sys
from helpers import embedded
flags = {"disable-auto-complete-config": [""]}
server = embedded.launch([sys.argv[1]], flags, shared=False, attempts=1)
print(server.ports["http"])
sys.stdin.read()
server.end()
"""
    kernels = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        environment = {**os.environ, "TMPDIR": str(tmp_path / str(number))}
        options = {"stdin": subprocess.PIPE, "env": environment}
        kernels.append(python(code, echo_repository, **options))
    ports = {kernel.stdout.readline() for kernel in kernels}
    for kernel in kernels:
        kernel.communicate("")
    assert len(ports) == 4
    assert "" not in ports


def test_a_server_outlives_its_kernel_and_is_found_and_stopped_from_another():
    first = python(CONNECT).communicate()[0].split()[-1]
    found = server.connect()
    assert found._process.process[0] == int(first)
    stopped = subprocess.run(
        [sys.executable, "-m", "helpers.server", "stop"], capture_output=True, text=True
    )
    assert stopped.stdout == "1 ended\n"
    assert not psutil.pid_exists(int(first))


def test_connect_finds_a_server_that_was_killed_gone_and_starts_another():
    killed = server.connect()
    process_of(killed).kill()
    triton = server.connect()
    with httpclient.InferenceServerClient(triton.http) as client:
        assert client.is_model_ready("simple")


def test_connect_replaces_a_server_whose_stub_was_killed():
    broken = server.connect()
    stubs = process_of(broken).children()
    stubs[0].kill()
    assert wait_for(lambda: stubs[0].status() == psutil.STATUS_ZOMBIE)
    triton = server.connect()
    assert not broken._process.alive()
    with httpclient.InferenceServerClient(triton.http) as client:
        assert client.is_model_ready("simple")
    assert len(server.all_records()) == 1


def test_connect_waits_for_the_end_of_a_server_that_another_kernel_ends():
    ending = server.connect()
    ending._process.ending = True
    ending._process.note()
    triton = server.connect()
    assert not ending._process.alive()
    assert triton._process.alive()


def test_the_tutorials_server_needs_less_than_300_mb():
    triton = server.connect()
    processes = embedded.processes_of(triton._process)
    assert len(processes) >= 3  # the server and a stub for each model
    assert sum(process.memory_full_info().pss for process in processes) < 300e6


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_command_prints_its_addresses_and_ends_with_0(
    echo_repository, sent
):
    command = [sys.executable, "-m", "helpers.server", "--disable-auto-complete-config"]
    shell = subprocess.Popen(
        [*command, "--model-repository", str(echo_repository), "--log-verbose=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A shell's job ignores it, and so do all that such a job starts.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    typed, addresses = shell.stdout.readline(), shell.stdout.readline()
    assert typed.startswith("$ tritonserver --")
    assert addresses.count("127.0.0.1:") == 3
    shell.send_signal(sent)
    assert shell.wait(6) == 0  # the issue's own bound


def test_the_foreground_command_ends_with_1_when_its_server_is_killed(echo_repository):
    shell = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "helpers.server",
            f"--model-repository={echo_repository}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    shell.stdout.readline()
    (record,) = embedded.records()
    os.kill(record.process[0], signal.SIGKILL)
    assert shell.wait(10) == 1


def test_an_interrupted_start_leaves_nothing(echo_repository, monkeypatch):
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "wait_until_listening", interrupt)
    before = traces()
    with pytest.raises(KeyboardInterrupt):
        server.start(echo_repository, **QUICK)
    assert traces() == before


@pytest.mark.parametrize("words", [0, 1], ids=["at once", "at its work"])
def test_a_server_killed_while_it_starts_is_said_to_be(
    words, echo_repository, monkeypatch
):
    def spawn_and_kill(record: embedded.Server) -> None:
        spawn(record)
        assert wait_for(lambda: len(record.log()) >= words)
        os.kill(record.process[0], signal.SIGKILL)

    spawn = embedded.spawn
    monkeypatch.setattr(embedded, "spawn", spawn_and_kill)
    with pytest.raises(server.StartError, match="was ended while it started"):
        server.start(echo_repository, **QUICK)


def test_a_start_that_another_kernel_stops_is_said_to_be(echo_repository, monkeypatch):
    monkeypatch.setattr(embedded, "check_stub", lambda _: server.stop_all())
    with pytest.raises(server.StartError, match="was ended while it started"):
        server.start(echo_repository, **QUICK)
    assert embedded.records() == []


# A stub that is killed before its first word to Triton, and a model that holds up its
# own. The file says that it has been done, so that the next start is a sound one.
KILLED = """#!/bin/sh
[ $# = 0 ] && exit 1
[ -e {done} ] || {{ {touch} {done}; kill -9 $$; }}
exec $6/triton_python_backend_stub "$@"
"""
HELD_UP = """
import os, signal, subprocess

def hold_up(*_):
    if not os.path.exists("{done}"):
        subprocess.run(["{touch}", "{done}"])
        subprocess.Popen(["sh", "-c", f"sleep 2.5; kill -CONT {{os.getpid()}}"])
        os.kill(os.getpid(), signal.SIGSTOP)

{when}
"""
WHEN = {
    "held up in an import": "hold_up()",
    "held up in initialize": "TritonPythonModel.initialize = hold_up",
}


def losing_a_stub(repository: Path, how: str, touch: str = "touch") -> Path:
    """Make a model lose its stub as it loads, and return the model repository."""
    words = {"done": repository / "done", "touch": touch}
    if how == "killed at once":
        stub = repository / "echo" / "triton_python_backend_stub"
        stub.write_text(KILLED.format(**words))
        stub.chmod(0o755)
    else:
        with (repository / "echo" / "1" / "model.py").open("a") as model:
            model.write(HELD_UP.format(**words, when=WHEN[how]))
    return repository


@pytest.mark.parametrize("how", ["killed at once", *WHEN])
def test_a_start_whose_stub_is_lost_is_done_again(how, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "STUB_TIMEOUT_S", 1)
    repository = losing_a_stub(write_echo(tmp_path / "models"), how)
    with server.start(repository, **QUICK) as triton:
        assert (repository / "done").exists()
        assert echo(triton) == [0, 1, 2]


def test_a_start_whose_stub_dies_as_it_listens_is_done_again(
    echo_repository, monkeypatch
):
    def kill_one_and_look(record: embedded.Server) -> list[embedded.Process]:
        if not killed:
            killed.extend(psutil.Process(record.process[0]).children())
            killed[0].kill()
            assert wait_for(lambda: killed[0].status() == psutil.STATUS_ZOMBIE)
        return look(record)

    killed, look = [], embedded.stubs_of
    monkeypatch.setattr(embedded, "stubs_of", kill_one_and_look)
    with server.start(echo_repository, **QUICK) as triton:
        assert echo(triton) == [0, 1, 2]


def test_a_stub_that_is_lost_each_time_is_said_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "STUB_TIMEOUT_S", 1)
    repository = losing_a_stub(
        write_echo(tmp_path / "models"), "killed at once", "true"
    )
    before = traces()
    with pytest.raises(server.StartError, match="of a model was killed or held up"):
        server.start(repository, **QUICK)
    assert traces() == before


# --- Nothing is left --------------------------------------------------------------


def test_thirty_servers_ten_of_them_killed_leave_nothing(echo_repository, tmp_path):
    before = traces()

    def live_and_die(number: int) -> tuple[list[float], str]:
        triton = server.start(echo_repository, id=f"number-{number}", **QUICK)
        answer = echo(triton)
        if number % 3 == 0:
            process_of(triton).kill()
        triton.stop()
        return answer, triton._process.unpacked

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers, unpacked = zip(*pool.map(live_and_die, range(30)), strict=True)
    assert answers == ([0, 1, 2],) * 30
    assert len(set(unpacked)) == 30
    assert not any(Path(folder).exists() for folder in unpacked)
    assert traces() == before


def test_a_killed_server_is_swept_by_the_next_start(echo_repository):
    before = traces()
    killed = server.start(echo_repository, **QUICK)
    process_of(killed).kill()
    assert wait_for(lambda: not killed._process.alive())
    assert traces() != before
    assert Path(killed._process.unpacked).exists()
    server.start(echo_repository, id="the next one", **QUICK).stop()
    assert not Path(killed._process.unpacked).exists()
    assert traces() == before


def test_a_killed_stub_and_kernel_leave_nothing_after_the_stop(echo_repository):
    before = traces()
    code = """
import os, sys
from helpers import server
server.start(sys.argv[1], disable_auto_complete_config=True)
os.kill(os.getpid(), 9)
"""
    assert python(code, echo_repository).wait(60) == -signal.SIGKILL
    (record,) = embedded.records()
    for process in embedded.processes_of(record):
        if process.pid != record.process[0]:
            process.kill()
    server.stop_all()
    assert not Path(record.unpacked).exists()
    assert traces() == before


def test_a_kernel_killed_while_it_starts_leaves_nothing_for_long(echo_repository):
    before = traces()
    code = "import sys; from helpers import server; server.start(sys.argv[1])"
    kernel = python(code, echo_repository)
    assert wait_for(lambda: embedded.records() != [])
    kernel.kill()
    kernel.wait()
    server.stop_all()
    # Killed between fork and exec, it can't be told from others: it ends by itself.
    assert wait_for(lambda: traces() == before)


def test_what_a_killed_server_unpacked_goes_though_an_older_one_runs(
    echo_repository, monkeypatch
):
    with server.start(echo_repository, id="older", **QUICK) as older:
        flags = {"model_control_mode": "explicit", **QUICK}
        younger = server.start(echo_repository, **flags)
        with httpclient.InferenceServerClient(younger.http) as client:
            client.load_model("echo")
        folder = Path(embedded.find_unpacked(process_of(younger).pid))
        assert younger._process.unpacked is None  # it had no Python model at its start
        # Of servers of others, which may be older too, and of what they have in /tmp,
        # nothing is known.
        tmp = types.SimpleNamespace(glob=lambda name: [folder] * folder.match(name))
        monkeypatch.setattr(embedded, "TEMPORARY", tmp)
        ours, every = [process_of(older), process_of(younger)], psutil.process_iter
        monkeypatch.setattr(
            psutil,
            "process_iter",
            lambda *names: (p for p in every(*names) if p in ours),
        )
        process_of(younger).kill()
        younger.stop()
        assert not folder.exists()


@pytest.mark.parametrize("how", ["stopped", "stopped with a client", "killed"])
def test_files_that_a_client_sent_go_with_the_server(echo_repository, how):
    def folders(triton: server.Triton) -> list[str]:
        return embedded.folders_of(process_of(triton).pid, embedded.SENT)

    flags = {"model_control_mode": "explicit", "load_model": "echo", **QUICK}
    theirs, ours = (
        server.start(echo_repository, **flags, id=name) for name in ("theirs", "ours")
    )
    files = {"file:1/model.py": (echo_repository / "echo/1/model.py").read_bytes()}
    for triton in (theirs, ours):
        client = httpclient.InferenceServerClient(triton.http)
        config = client.get_model_config("echo") | {"name": "sent"}
        client.load_model("sent", config=json.dumps(config), files=files)
        if how != "stopped with a client":  # which cuts the server's own end short
            client.close()
    [kept], [gone] = folders(theirs), folders(ours)
    if how == "killed":
        process_of(ours).kill()
        assert wait_for(lambda: not ours._process.alive())
    ours.stop()
    assert (Path(kept).exists(), Path(gone).exists()) == (True, False)
    theirs.stop()
    assert not Path(kept).exists()


def test_a_sweep_leaves_what_belongs_to_others_alone(
    echo_repository, tmp_path, monkeypatch
):
    # A folder of its own, since what nobody has goes with another worker's sweep.
    monkeypatch.setattr(embedded, "TEMPORARY", tmp_path)
    theirs = [
        embedded.SHM / "triton_python_backend_shm_region_of_somebody_else",
        tmp_path / "python_env_theirs",
    ]
    theirs[0].touch()
    theirs[1].mkdir()
    try:
        killed = server.start(echo_repository, **QUICK)
        process_of(killed).kill()
        killed.stop()
        assert all(path.exists() for path in theirs)
    finally:
        theirs[0].unlink()
