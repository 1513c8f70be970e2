"""`compose.yaml`: what lesson 05 gives to those who keep a server running."""

import re
import subprocess

import engine as real
import pytest
import yaml
from conftest import wait_for
from course import ROOT
from test_docker import asked_for_docker, running_engine  # noqa: F401

from helpers import embedded, engine, repository, server

pytestmark = pytest.mark.docker


@pytest.fixture
def project(tmp_path):
    """A copy of compose.yaml with ports that are free and the repository's path."""
    repository.build()
    text = (ROOT / "compose.yaml").read_text().replace("./data", str(ROOT / "data"))
    ports = embedded.choose_ports({}, set())
    for inside, outside in zip((8000, 8001, 8002), ports.values(), strict=True):
        text = text.replace(f"127.0.0.1:{inside}:", f"127.0.0.1:{outside}:")
    file = tmp_path / "compose.yaml"
    # Until 1.29 a version had to be there, which later ones ignore.
    file.write_text(f"version: '3.9'\n{text}")
    return [*real.compose(), f"--file={file}", "--project-name=kept"], ports


def health(container):
    return engine.docker("inspect", "--format={{.State.Health.Status}}", container)


def test_it_brings_up_a_server_that_gets_healthy_and_ends_it(project):
    command, ports = project
    try:
        subprocess.run([*command, "up", "--detach"], check=True)
        container = subprocess.check_output([*command, "ps", "-q"], text=True).strip()
        assert health(container) == "starting\n"
        assert wait_for(lambda: health(container) == "healthy\n", 60)
        assert server.answers(f"http://127.0.0.1:{ports['http']}/v2/health/ready")
        host = engine.json.loads(engine.docker("inspect", container))[0]["HostConfig"]
        assert host["ShmSize"] == 1 << 30
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert host["Binds"] == [f"{repository.REPOSITORY}:/models:ro"]
        assert {p[0]["HostIp"] for p in host["PortBindings"].values()} == {"127.0.0.1"}
    finally:
        subprocess.run([*command, "down"], check=True)


def test_its_image_is_the_one_that_triton_docker_runs():
    text = (ROOT / "compose.yaml").read_text()
    assert yaml.safe_load(text)["services"]["triton"]["image"] == engine.IMAGE


def test_its_lines_for_a_gpu_are_what_compose_understands(project):
    command, _ = project
    (option,) = [word for word in command if word.startswith("--file=")]
    file = real.Path(option.removeprefix("--file="))
    file.write_text(re.sub("# deploy:", "deploy:", file.read_text()))
    answer = subprocess.run(
        [*command, "up", "--detach"], capture_output=True, text=True
    )
    subprocess.run([*command, "down"], check=True)
    assert 'could not select device driver "" with capabilities' in answer.stderr
