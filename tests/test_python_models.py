"""What lesson 09 says of Python models, and does not show: slips, and environments."""

import json
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from conftest import QUICK
from tritonclient.utils import InferenceServerException

from helpers import server

MODEL = """
import sys

import numpy as np
import triton_python_backend_utils as pb_utils


def respond(array):
    return pb_utils.InferenceResponse([pb_utils.Tensor("text", array)])


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

"""
TEXT = {"data_type": "TYPE_STRING", "dims": [1]}
CONFIG = {
    "backend": "python",
    "max_batch_size": 4,
    "input": [{"name": "name", **TEXT}],
    "output": [{"name": "text", **TEXT}],
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    repository = tmp_path_factory.mktemp("models")
    (repository / "slip" / "1").mkdir(parents=True)
    triton = server.start(repository, **QUICK, model_control_mode="explicit")
    with triton, grpcclient.InferenceServerClient(triton.grpc) as client:
        yield client


def load(client, methods, environment=""):
    """Load the model with these methods; without another config, nothing would be."""
    parameters = {"methods": {"string_value": methods}}
    if environment:
        parameters["EXECUTION_ENV_PATH"] = {"string_value": str(environment)}
    config = json.dumps(CONFIG | {"parameters": parameters})
    files = {"file:1/model.py": (MODEL + methods).encode()}
    client.load_model("slip", config=config, files=files)


def ask(client, **options):
    name = grpcclient.InferInput("name", [1, 1], "BYTES")
    name.set_data_from_numpy(np.array([["Ada"]], object))
    return client.infer("slip", [name], **options).as_numpy("text")


def test_too_few_responses_fail_the_call(client):
    load(client, "    def execute(self, requests):\n        return []\n")
    with pytest.raises(InferenceServerException, match="objects do not match"):
        ask(client)


def test_none_for_a_response_leaves_its_client_without_an_answer(client):
    load(client, "    def answer(self, request):\n        return None\n")
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        ask(client, client_timeout=2)


def test_another_shape_and_dtype_than_promised_reach_the_client(client):
    load(
        client, "    def answer(self, request):\n        return respond(np.arange(3))\n"
    )
    assert ask(client).tolist() == [0, 1, 2]
    assert ask(client).dtype == np.int64


def test_what_initialize_raises_is_the_reason_of_the_failed_load(client):
    with pytest.raises(InferenceServerException, match="ValueError: no licence"):
        load(
            client,
            "    def initialize(self, args):\n        raise ValueError('no licence')\n",
        )


WHERE = """
    def answer(self, request):
        return respond(np.array([[sys.prefix]], object))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A venv which takes NumPy from this environment."""
    folder = tmp_path_factory.mktemp("made") / "env"
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))
    return folder


def packed(folder, name):
    archive = folder.with_name(name)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".")
    return archive


def place_of(client, environment):
    """Return the prefix of the Python that a model gets with this environment."""
    load(client, WHERE, environment)
    return Path(ask(client)[0, 0].decode())


def test_an_environment_may_be_a_folder(client, environment):
    assert place_of(client, environment) == environment


def test_a_packed_venv_leads_back_to_where_it_was_made(client, environment):
    assert place_of(client, packed(environment, "plain.tar.gz")) == environment


def test_a_packed_environment_that_finds_its_place_is_used_where_it_is(
    client, environment
):
    activate = environment / "bin" / "activate"
    before = activate.read_text()
    activate.write_text('export PATH="$(dirname "${BASH_SOURCE[0]}"):$PATH"\n')
    try:
        archive = packed(environment, "own.tar.gz")
    finally:
        activate.write_text(before)
    assert place_of(client, archive).parent.name.startswith("python_env_")


def test_an_environment_without_activate_is_refused(client, tmp_path):
    with pytest.raises(InferenceServerException, match="contain an 'activate' script"):
        place_of(client, tmp_path)
