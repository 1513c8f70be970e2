"""`helpers.engine` without an engine: Docker's messages, as people have reported them.

On a real engine it is tested in docker/test_docker.py.
"""

import pytest

from helpers import docker, embedded, engine

DESKTOP_DENIES = """docker: Error response from daemon: Mounts denied:
The path /Volumes/course is not shared from the host and is not known to Docker.
You can configure shared paths from Docker -> Preferences... -> Resources.
See https://docs.docker.com/go/mac-file-sharing/ for more info."""

SAID = [
    (DESKTOP_DENIES, "Docker Desktop does not share"),
    (
        "error during connect: Get http://%2F%2F.%2Fpipe%2Fdocker_engine/v1.40/info:"
        " open //./pipe/docker_engine: The system cannot find the file specified. In"
        " the default daemon configuration on Windows, the docker client must be run"
        " elevated to connect.",
        "Docker's engine is not running",
    ),
    (
        "failed to connect to the docker API at unix:///var/run/docker.sock; check if"
        " the path is correct and if the daemon is running: dial unix"
        " /var/run/docker.sock: connect: no such file or directory",
        "Docker's engine is not running",
    ),
    (
        "permission denied while trying to connect to the docker API at"
        " unix:///var/run/docker.sock",
        "You may not use Docker",
    ),
    (
        "Got permission denied while trying to connect to the Docker daemon socket at"
        " unix:///var/run/docker.sock: dial unix: connect: permission denied",
        "You may not use Docker",
    ),
    (
        'Error response from daemon: Head "https://nvcr.io/v2/nvidia/tritonserver/'
        'manifests/24.03-py3": unauthorized: authentication required',
        "`docker login nvcr.io` with the user $oauthtoken",
    ),
    (
        "Error response from daemon: pull access denied for tritonserver, repository"
        " does not exist or may require 'docker login'",
        "`docker login nvcr.io`",
    ),
    (
        "Error response from daemon: manifest for nvcr.io/nvidia/tritonserver:1 not"
        " found: manifest unknown: manifest unknown",
        "There is no image",
    ),
    (
        'Error response from daemon: Get "https://nvcr.io/v2/": dial tcp: lookup'
        " nvcr.io: no such host",
        "its registry does not answer",
    ),
    (
        'Error response from daemon: Get "https://nvcr.io/v2/": net/http: request'
        " canceled while waiting for connection",
        "its registry does not answer",
    ),
    (
        "failed to register layer: write /opt/x.so: no space left on device",
        "Docker's disk is full",
    ),
    (
        "docker: Error response from daemon: failed to create task for container: OCI"
        " runtime create failed: error running hook: nvidia-container-cli:"
        " initialization error: nvml error: driver not loaded: unknown.",
        "could not give the container a GPU",
    ),
    (
        "docker: Error response from daemon: Conflict.",
        "Conflict. Mend that, or unset TRITON",
    ),
]


@pytest.mark.parametrize(("said", "sentence"), SAID, ids=[s for _, s in SAID])
def test_what_docker_says_becomes_one_sentence_with_a_cure(said, sentence):
    error = engine.explain(said)
    assert sentence in str(error)
    assert "\n" not in str(error)
    assert not isinstance(error, embedded.PortLostError)


@pytest.mark.parametrize(
    "said",
    [
        "driver failed programming external connectivity on endpoint triton: Bind for"
        " 127.0.0.1:8000 failed: port is already allocated.",
        "Error starting userland proxy: listen tcp4 127.0.0.1:8000: bind: address"
        " already in use.",
        "Ports are not available: exposing port TCP 127.0.0.1:8000 -> 127.0.0.1:0:"
        " listen tcp 127.0.0.1:8000: bind: An attempt was made to access a socket in a"
        " way forbidden by its access permissions.",
    ],
)
def test_a_port_lost_to_another_is_told_from_all_else(said):
    error = engine.explain(f"docker: Error response from daemon: {said}")
    assert isinstance(error, embedded.PortLostError)


@pytest.mark.parametrize(
    ("asked", "runtimes", "given"),
    [
        ("", {"runc": {}, "nvidia": {}}, "1"),
        ("", {"runc": {}}, "0"),
        ("0", {"runc": {}, "nvidia": {}}, "0"),
        ("all", {"runc": {}, "nvidia": {}}, "all"),
    ],
)
def test_a_gpu_is_given_where_docker_can_and_it_is_wanted(
    asked, runtimes, given, monkeypatch
):
    monkeypatch.setenv("TRITON_GPUS", asked)
    assert engine.gpus({"Runtimes": runtimes}) == given
    server = docker.Server("n", "i", {}, {}, dict.fromkeys(embedded.PROTOCOLS, 1), True)
    server.gpus = given
    assert (f"--gpus={given}" in server.words()) == (given != "0")


def test_a_pull_is_drawn_layer_by_layer(capsys):
    engine.show_progress(
        [
            "24.03-py3: Pulling from nvidia/tritonserver\n",
            "aaaaaaaaaaaa: Already exists\n",
            "bbbbbbbbbbbb: Pulling fs layer\n",
            "cccccccccccc: Pulling fs layer\n",
            "bbbbbbbbbbbb: Download complete\n",
            "bbbbbbbbbbbb: Pull complete\n",
            "cccccccccccc: Pull complete\n",
            "Status: Downloaded newer image for nvcr.io/nvidia/tritonserver\n",
        ]
    )
    assert "3/3" in capsys.readouterr().out


def test_a_process_is_known_where_there_is_no_proc(monkeypatch, tmp_path):
    pid = embedded.os.getpid()
    monkeypatch.setattr(embedded, "PROC", tmp_path / "proc")
    assert embedded.lives(embedded.identity(pid))
    assert not embedded.lives((pid, 0))
    with pytest.raises(ProcessLookupError):
        embedded.identity(2**22 + 1)
